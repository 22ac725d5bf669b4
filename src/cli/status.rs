//! `mirrorfs status`.

use super::{Outcome, call, print_json, show};
use crate::control::{Exit, Failure, Reply, Request, Status};
use crate::runtime::registry::Registry;
use std::path::{Path, PathBuf};

/// Say what a mirror is doing; without PATH: all mirrors of this user that are running
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The mountpoint, the source, or anything below either
    pub path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where mirrors keep their state
    #[arg(long, value_name = "DIR", env = "MIRRORFS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
}

pub fn run(args: &Args) -> Outcome {
    let registry = Registry::read(args.state_dir.as_deref());
    match &args.path {
        Some(path) => one(&registry, path, args.json),
        None => all(&registry, args.json),
    }
}

fn one(registry: &Registry, path: &Path, json: bool) -> Outcome {
    let mirror = registry.find(path)?;
    let status = match call(&mirror.state_dir, &Request::Status, &mut |_| {}) {
        Ok(Reply::Status { status }) => *status,
        Ok(_) => return Err(super::unexpected()),
        Err(failure) if failure.exit == Exit::NotMounted => {
            // Scripts get the same keys either way; the exit code says that nobody serves it.
            if json {
                print_json(&show::left_behind(&mirror))?;
            }
            return Err(failure);
        }
        Err(failure) => return Err(failure),
    };
    if json {
        print_json(&status)
    } else {
        super::print_line(&show::status(&status))
    }
}

fn all(registry: &Registry, json: bool) -> Outcome {
    let mut found: Vec<Status> = Vec::new();
    for mirror in registry.mirrors() {
        match call(&mirror.state_dir, &Request::Status, &mut |_| {}) {
            Ok(Reply::Status { status }) => found.push(*status),
            Ok(_) => return Err(super::unexpected()),
            Err(failure) if failure.exit == Exit::NotMounted => {}
            Err(failure) => eprint!("{failure}"),
        }
    }
    if json {
        return print_json(&found);
    }
    if found.is_empty() {
        return Err(Failure::new(Exit::NotMounted, "no mirror is running")
            .next("mirrorfs mount SOURCE TARGET [MOUNTPOINT]"));
    }
    let texts: Vec<String> = found.iter().map(show::status).collect();
    super::print_line(&texts.join("\n\n"))
}
