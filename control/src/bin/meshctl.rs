//! `meshctl`: the operator's command line for mesh-control.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_control::cli::main()
}
