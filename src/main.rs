//! Parses, dispatches, and ends with the exit code.

fn main() -> std::process::ExitCode {
    mirrorfs::cli::main(std::env::args_os().collect())
}
