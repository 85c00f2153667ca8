//! The command lines.
pub mod daemon;
/// x
pub fn main() -> std::process::ExitCode { std::process::ExitCode::SUCCESS }
