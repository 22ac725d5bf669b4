//! `mirrorfs recover`.

use super::Outcome;
use std::path::PathBuf;

/// On the backup host, primary gone: finish or roll back an interrupted apply
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The directory of the replica
    pub target: PathBuf,
}

pub fn run(args: &Args, verbose: u8) -> Outcome {
    super::print_line(&crate::runtime::recover(&args.target, verbose)?)
}
