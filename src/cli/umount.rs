//! `mirrorfs umount`.

use super::{Outcome, ask, millis, print_json, print_line, show};
use crate::config::parse_duration;
use crate::control::{Exit, Reply, Request};
use std::path::PathBuf;
use std::time::Duration;

/// Unmount; ends when the replica has applied everything, durably, and prints a receipt
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The mountpoint, the source, or anything below either
    pub path: PathBuf,
    /// Wait no longer than this: unmount all the same, exit with 3, and drain on in the background
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Detach a mount that is in use; it ends when the last user lets go
    #[arg(long, short)]
    pub lazy: bool,
    /// Print the receipt as JSON
    #[arg(long)]
    pub json: bool,
    /// Where mirrors keep their state
    #[arg(long, value_name = "DIR", env = "MIRRORFS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Outcome {
    let dead = crate::runtime::detach_dead(&args.path);
    let request = Request::Umount {
        timeout_ms: millis(args.timeout),
        lazy: args.lazy,
    };
    let asked = ask(&args.path, args.state_dir.as_deref(), &request).map_err(|failure| {
        match dead && failure.exit == Exit::NotMounted {
            true => failure.context("the daemon of this mount had died; its mount is detached"),
            false => failure,
        }
    });
    match asked? {
        Reply::Receipt { receipt } if args.json => print_json(&receipt),
        Reply::Receipt { receipt } => print_line(&show::receipt(&receipt)),
        _ => Err(super::unexpected()),
    }
}
