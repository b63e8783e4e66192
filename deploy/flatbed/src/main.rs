//! The `flatbed` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    flatbed::cli::run(std::env::args_os().collect())
}
