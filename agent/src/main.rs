//! The daemon and its local commands. See `mesh_agent::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_agent::cli::main()
}
