//! The composition root: the only module that sees all. It opens a mirror's state, joins the
//! mount, the walk and the shipping, answers the control socket, and sees to the end: every way
//! out (`mirrorfs umount`, a raw unmount, a signal) seals, drains and leaves a state that the next
//! mount, or a drain without one, goes on from.

mod connect;
mod daemon;
mod engine;
mod failures;
mod life;
mod log;
mod places;
mod process;
pub mod ready;
pub mod registry;
pub mod ship;
mod waiters;

pub use daemon::{detach_dead, drain, mount};
pub use log::LOG_NAME;

use crate::config::Options;
use crate::control::{Exit, Failure};
use crate::model::RESERVED_NAME;
use crate::replica;
use std::fs::File;
use std::os::fd::AsFd;
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
    if !target.join(RESERVED_NAME).exists() {
        let what = format!("{} is not a replica", target.display());
        return Err(Failure::new(Exit::NotMounted, what)
            .next("name the directory that a mirror was written to"));
    }
    let found = replica::recover(target).map_err(|error| failures::replica(&error))?;
    let applied = match found.applied {
        0 => "nothing was left to apply".to_owned(),
        1 => "an epoch that was durable is now applied".to_owned(),
        several => format!("{several} epochs that were durable are now applied"),
    };
    let state = match found.consistent {
        true => "the tree is the one that the primary had when it sealed that epoch",
        false => "the first sync was not through: the tree has some of the source only",
    };
    let mut text = format!("{applied}; epoch {}: {state}", found.epoch);
    if found.suspects > 0 {
        text.push_str(&format!(
            "; {} objects were changed by others",
            found.suspects
        ));
    }
    Ok(text)
}

/// Serves a replica on standard input and output until the link ends. Only errors go to standard
/// error: the other side shows its end to a person.
///
/// # Errors
/// When the replica cannot be served, or was refused.
pub fn serve(path: &Path, verbose: u8) -> Result<(), Failure> {
    log::to_stderr(verbose, "error");
    rustix::process::umask(rustix::fs::Mode::empty());
    let system = |error: std::io::Error| failures::local(&error).context("standard input");
    // Unbuffered: frames are written whole.
    let reader = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(system)?;
    let writer = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(system)?;
    let options = replica::ServeOptions::default();
    replica::serve(path, options, File::from(reader), File::from(writer))
        .map_err(|error| failures::replica(&error))
}
