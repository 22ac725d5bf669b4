//! `mirrorfs drain`.

use super::{Outcome, call, millis, print_json, print_line, show};
use crate::config::parse_duration;
use crate::control::{Exit, Reply, Request};
use crate::runtime::{self, registry::Registry};
use std::path::PathBuf;
use std::time::Duration;

/// Ship and apply everything; also with no mount, from the state left behind
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The mountpoint, the source, or anything below either
    pub path: PathBuf,
    /// Give up after this time (500ms, 10s, 5m)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Print the receipt as JSON
    #[arg(long)]
    pub json: bool,
    /// Where mirrors keep their state
    #[arg(long, value_name = "DIR", env = "MIRRORFS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Mirror SOURCE though it is empty and the replica is not: deletes all at the replica
    #[arg(long)]
    pub allow_empty_source: bool,
    /// Mirror SOURCE though it is another directory than it was at the last mount
    #[arg(long)]
    pub allow_changed_source: bool,
}

pub fn run(args: &Args, verbose: u8) -> Outcome {
    // What a dead daemon left mounted would cover the source, and maybe the state.
    let _ = runtime::detach_dead(&args.path);
    let mut mirror = Registry::read(args.state_dir.as_deref()).find(&args.path)?;
    let request = Request::Drain {
        timeout_ms: millis(args.timeout),
    };
    let mut progress = show::Progress::new();
    let asked = call(&mirror.state_dir, &request, &mut |status| {
        progress.show(status)
    });
    let receipt = match asked {
        Ok(Reply::Receipt { receipt }) => receipt,
        Ok(_) => return Err(super::unexpected()),
        // Nobody serves it: this process does.
        Err(failure) if failure.exit == Exit::NotMounted => {
            mirror.options.allow_empty_source = args.allow_empty_source;
            mirror.options.allow_changed_source = args.allow_changed_source;
            let show = &mut |status: &crate::control::Status| progress.show(status);
            runtime::drain(mirror, args.timeout, verbose, show)?
        }
        Err(failure) => return Err(failure),
    };
    progress.end();
    if args.json {
        print_json(&receipt)
    } else {
        print_line(&show::receipt(&receipt))
    }
}
