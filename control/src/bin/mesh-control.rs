//! `mesh-control`: the embedded control plane.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_control::cli::daemon::main()
}
