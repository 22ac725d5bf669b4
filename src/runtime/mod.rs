//! The composition root: the only module that sees all. It opens a mirror's state, joins the
//! mount, the walk and the shipping, answers the control socket, and sees to the end: every way
//! out (`mirrorfs umount`, a raw unmount, a signal) seals, drains and leaves a state that the next
//! mount, or a drain without one, goes on from.

// connect
// daemon
// engine
// failures
mod life;
mod log;
mod places;
pub mod ready;
pub mod registry;
//ship
mod waiters;

pub use daemon::{drain, mount};
pub use log::LOG_NAME;

use crate::config::Options;
use crate::control::Failure;
use crate::replica;
use std::path::{Path, PathBuf};

/// What `mirrorfs mount` is asked for.
#[derive(Debug)]
pub struct MountRequest {
    /// The directory to mirror.
    pub source: PathBuf,
    /// The replica, as the user names it.
    pub target: String,
    /// Where to mount; `None`: over the source.
    pub mountpoint: Option<PathBuf>,
    /// Where mirrors keep their state; `None`: the default.
    pub state_root: Option<PathBuf>,
    /// The options.
    pub options: Options,
    /// How much to log.
    pub verbose: u8,
}

/// Finishes or rolls back an interrupted apply, and says what was done.
///
/// # Errors
/// When it is no replica, is being served, or its disk fails.
pub fn recover(target: &Path, verbose: u8) -> Result<String, Failure> {
    log::to_stderr(verbose, "warn");
    rustix::process::umask(rustix::fs::Mode::empty());
    let recovered = replica::recover(target).map_err(|error| failures::replica(&error))?;
    Ok(recovered.to_string())
}

/// Serves a replica on standard input and output until the link ends. Only errors go to standard
/// error: the other side shows its end to a person.
///
/// # Errors
/// When the replica cannot be served, or was refused.
pub fn serve(path: &Path, verbose: u8) -> Result<(), Failure> {
    log::to_stderr(verbose, "error");
    rustix::process::umask(rustix::fs::Mode::empty());
    let streams = (std::io::stdin().lock(), std::io::stdout().lock());
    replica::serve(path, &replica::Options::default(), streams.0, streams.1)
        .map_err(|error| failures::replica(&error))
}
