//! `mirrorfs serve --stdio`: the replica's side of a connection.

use super::Outcome;
use std::path::PathBuf;

/// Serve a replica to the other end of a connection; started over ssh, not by hand
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Speak over standard input and output
    #[arg(long, required = true)]
    pub stdio: bool,
    /// The directory of the replica
    pub path: PathBuf,
}

pub fn run(args: &Args, verbose: u8) -> Outcome {
    crate::runtime::serve(&args.path, verbose)
}
