//! `mirrorfs wait`.

use super::{Outcome, ask, millis};
use crate::config::parse_duration;
use crate::control::{Reply, Request};
use std::path::PathBuf;
use std::time::Duration;

/// Wait until what was written before is on stable storage at the replica
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The mountpoint, the source, or anything below either
    pub path: PathBuf,
    /// Give up after this time (500ms, 10s, 5m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Where mirrors keep their state
    #[arg(long, value_name = "DIR", env = "MIRRORFS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Outcome {
    let request = Request::Wait {
        timeout_ms: millis(args.timeout),
    };
    match ask(&args.path, args.state_dir.as_deref(), &request)? {
        Reply::Durable { .. } => Ok(()),
        _ => Err(super::unexpected()),
    }
}
