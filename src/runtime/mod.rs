//! The composition root: the only module that sees all. It opens a mirror's state, joins the
//! mount, the walk and the shipping, answers the control socket, and sees to the end: every way
//! out (`mirrorfs umount`, a raw unmount, a signal) seals, drains and leaves a state that the next
//! mount, or a drain without one, goes on from.

mod life;
mod log;
mod places;
pub mod ready;
pub mod registry;
mod waiters;

use crate::config::{Mirror, Options};
use crate::control::{Exit, Failure, Receipt, Status};
pub use log::LOG_NAME;
use ready::Ready;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
/// stub
pub fn mount(_request: MountRequest, _ready: Ready) -> Result<(), Failure> {
    Err(Failure::new(Exit::Failure, "stub"))
}
/// stub
pub fn drain(
    _mirror: Mirror,
    _timeout: Option<Duration>,
    _verbose: u8,
    _show: &mut dyn FnMut(&Status),
) -> Result<Receipt, Failure> {
    Err(Failure::new(Exit::Failure, "stub"))
}
/// stub
pub fn recover(_target: &Path, _verbose: u8) -> Result<String, Failure> {
    Err(Failure::new(Exit::Failure, "stub"))
}
/// stub
pub fn serve(_path: &Path, _verbose: u8) -> Result<(), Failure> {
    Err(Failure::new(Exit::Failure, "stub"))
}
