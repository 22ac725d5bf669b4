//! Hop 1: the kernel's requests, and the life of the mount.
//!
//! Owns the FUSE session, what the kernel may cache, mounting, unmounting, and the answer to "who
//! holds it". Knows the backing directory only through [`Backing`]: a request is decoded, done
//! there, and answered, so that a test can drive the same operations without a kernel. Nothing
//! here waits for the network: what `--remote` promises is waited for by whoever implements
//! [`RemoteWait`], with the reply in its hands.
//!
//! Serving threads open no path (the mount may lie over everything they could open) and are
//! `PR_SET_IO_FLUSHER` where that is permitted.

mod attach;
mod convert;
mod dispatch;
mod errno;
pub mod holders;
mod reply;
pub mod table;
mod unmount;

use crate::backing::Backing;
use crate::config::MountFlags;
use crate::limits::{SERVING_THREADS_MAX, SERVING_THREADS_MIN};
use dispatch::Dispatch;
use fuser::{Config, SessionACL};
use parking_lot::{Condvar, Mutex};
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::MountEntry;
use tokio::sync::watch;

pub use unmount::UnmountError;

/// What an fsync is answered with, once the replica is as far as was promised.
pub type FsyncAnswer = Box<dyn FnOnce(Result<(), Errno>) + Send>;

/// Who knows when an fsync may be answered (`--remote`).
pub trait RemoteWait: Send + Sync + 'static {
    /// Called when everything is on the local disk. Must not block; calls `answer` now or later,
    /// from any thread. An answer that is dropped is EIO.
    fn after_fsync(&self, answer: FsyncAnswer);
}

/// `--remote async`: the network is never waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRemoteWait;

impl RemoteWait for NoRemoteWait {
    fn after_fsync(&self, answer: FsyncAnswer) {
        answer(Ok(()));
    }
}

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Where; may be `source` itself.
    pub point: PathBuf,
    /// The backing directory, for the table of mounts, and for the mount flags it is under.
    pub source: PathBuf,
    /// The replica, for the table of mounts.
    pub target: String,
    /// Let other users in; the kernel checks permissions in any case.
    pub allow_other: bool,
    /// Threads that serve; `None`: as many as there are cores, from 2 to 4.
    pub threads: Option<usize>,
    /// Answer OPEN with ENOSYS: no request for an open or a close. Only for a daemon that may
    /// open any file whatever its mode, and with a backing directory that holds unlinked files.
    pub no_open: bool,
    /// Whether a close must reach the local disk (`--local close`).
    pub flush_on_close: bool,
    /// What mount(8) passed: only ever more than the mount that the source is on forbids.
    pub flags: MountFlags,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("cannot mount at {}: {source}", path.display())]
    Point {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A live mount of this program is there.
    #[error("{} is mounted already ({what})", point.display())]
    AlreadyMounted {
        /// Where.
        point: PathBuf,
        /// What is mounted there: source and target.
        what: String,
    },
    /// A mount of this program is there whose daemon does not answer.
    #[error("the mirrorfs mounted at {} does not answer; is its daemon stopped?", point.display())]
    Silent {
        /// Where.
        point: PathBuf,
    },
    /// The mount of a dead daemon cannot be detached.
    #[error("a dead daemon's mount at {} cannot be detached: {source}; try `umount -l`", point.display())]
    Stale {
        /// Where.
        point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's FUSE is not there.
    #[error(
        "/dev/fuse cannot be opened: {source}; load the module `fuse`, or give it to the container"
    )]
    Device {
        /// Why.
        source: io::Error,
    },
    /// An ordinary user may not let others in.
    #[error("--allow-other needs the line `user_allow_other` in /etc/fuse.conf")]
    AllowOther,
    /// It was refused.
    #[error("cannot mount at {}: {source}", point.display())]
    Refused {
        /// Where.
        point: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How a session stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Session {
    /// Requests are served.
    Serving,
    /// The kernel has let go: no request will come any more, all of them are answered.
    Ended,
    /// It broke; the mount is dead.
    Failed(String),
}

struct Ended {
    session: Mutex<Session>,
    changed: Condvar,
    published: watch::Sender<Session>,
}

impl Ended {
    fn set(&self, session: Session) {
        let mut current = self.session.lock();
        *current = session.clone();
        // Whoever sees one of them sees the other.
        self.published.send_replace(session);
        self.changed.notify_all();
    }
}

/// A mount that is served. Dropped, it is detached lazily, so that no path is left to die.
pub struct Mounted {
    entry: MountEntry,
    ended: Arc<Ended>,
}

/// Mounts, and serves from threads of its own. What a dead daemon of ours left there is detached.
///
/// # Errors
/// See [`MountError`].
pub fn mount(
    backing: Arc<Backing>,
    remote: Arc<dyn RemoteWait>,
    options: &Options,
) -> Result<Mounted, MountError> {
    let place = table::detach_stale(&options.point)?;
    let device = attach::attach(&place.path, &wanted(options)).map_err(|failed| match failed {
        attach::Failed::Device(source) => MountError::Device { source },
        attach::Failed::AllowOther => MountError::AllowOther,
        attach::Failed::Other(source) => refused(&place.path, source),
    })?;
    let entry = table::resolve(&place.path)
        .map_err(|source| refused(&place.path, source))?
        .mount;
    let dispatch = Dispatch {
        backing,
        remote,
        no_open: options.no_open,
        flush: options.flush_on_close,
    };
    // From here on the mount is taken away again if anything fails.
    let mounted = Mounted {
        entry,
        ended: Arc::new(Ended {
            session: Mutex::new(Session::Serving),
            changed: Condvar::new(),
            published: watch::Sender::new(Session::Serving),
        }),
    };
    serve(dispatch, device, options, &mounted).map_err(|source| refused(&place.path, source))?;
    tracing::info!(point = %place.path.display(), "mounted");
    Ok(mounted)
}

fn serve(
    dispatch: Dispatch,
    device: OwnedFd,
    options: &Options,
    mounted: &Mounted,
) -> io::Result<()> {
    let config = configuration(options);
    let acl = config.acl;
    let session = fuser::Session::from_fd(dispatch, device, acl, config)?;
    let (ended, entry) = (Arc::clone(&mounted.ended), mounted.entry.clone());
    std::thread::Builder::new()
        .name("mount-session".to_owned())
        .spawn(move || {
            // Inherited by the threads that the session starts. Only root may; without it the daemon
            // merely has no preference when memory is short.
            rustix::process::configure_io_flusher_behavior(true).ok();
            let error = match session.run() {
                Ok(()) => return ended.set(Session::Ended),
                // A request was being read when the last one let go: the same end.
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {
                    return ended.set(Session::Ended);
                }
                Err(error) => error,
            };
            tracing::error!(%error, "the session with the kernel has failed");
            // Nobody serves it any more, and a dead mount is in the way of everybody.
            if let Err(error) = unmount::unmount(&entry, true) {
                tracing::error!("{error}");
            }
            ended.set(Session::Failed(error.to_string()));
        })?;
    Ok(())
}

fn wanted(options: &Options) -> attach::Wanted {
    // A comma would end the option, and the table of mounts is read line by line.
    let label = format!("{} -> {}", options.source.display(), options.target);
    let plain = |c: char| if c == ',' || c.is_control() { '_' } else { c };
    attach::Wanted {
        label: label.chars().map(plain).collect(),
        allow_other: options.allow_other,
        flags: asked_for(options.flags)
            | rustix::fs::statvfs(&options.source)
                .map_or(StatVfsMountFlags::empty(), |space| space.f_flag),
    }
}

fn asked_for(flags: MountFlags) -> StatVfsMountFlags {
    let pairs = [
        (flags.read_only, StatVfsMountFlags::RDONLY),
        (flags.no_suid, StatVfsMountFlags::NOSUID),
        (flags.no_dev, StatVfsMountFlags::NODEV),
        (flags.no_exec, StatVfsMountFlags::NOEXEC),
        (flags.no_atime, StatVfsMountFlags::NOATIME),
    ];
    let asked = pairs.into_iter().filter(|(asked, _)| *asked);
    asked.fold(StatVfsMountFlags::empty(), |flags, (_, flag)| flags | flag)
}

fn configuration(options: &Options) -> Config {
    let cores = std::thread::available_parallelism().map_or(SERVING_THREADS_MIN, Into::into);
    let threads = options
        .threads
        .unwrap_or(cores.clamp(SERVING_THREADS_MIN, SERVING_THREADS_MAX));
    let mut config = Config::default();
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(threads.max(1));
    config
}

fn refused(point: &Path, source: io::Error) -> MountError {
    MountError::Refused {
        point: point.to_owned(),
        source,
    }
}

impl Mounted {
    /// Where and as what it stands in the table of mounts.
    #[must_use]
    pub fn entry(&self) -> &MountEntry {
        &self.entry
    }

    /// Takes it away from the tree; the session ends when the kernel lets go, which is at once
    /// unless `lazy`. Not to be called from a serving thread: the kernel writes back first.
    ///
    /// # Errors
    /// [`UnmountError::Busy`] names who holds it; never with `lazy`.
    pub fn unmount(&self, lazy: bool) -> Result<(), UnmountError> {
        if *self.ended.session.lock() != Session::Serving {
            return Ok(());
        }
        unmount::unmount(&self.entry, lazy)
    }

    /// How the session stands, and every change of it: also when somebody else has unmounted.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<Session> {
        self.ended.published.subscribe()
    }

    /// Waits until the session has ended, but not longer than `limit`.
    #[must_use]
    pub fn wait_ended(&self, limit: Duration) -> Session {
        let deadline = Instant::now() + limit;
        let mut session = self.ended.session.lock();
        while *session == Session::Serving {
            if self
                .ended
                .changed
                .wait_until(&mut session, deadline)
                .timed_out()
            {
                break;
            }
        }
        session.clone()
    }

    /// Who holds it at this moment.
    #[must_use]
    pub fn holders(&self) -> holders::Holders {
        holders::of_mount(&self.entry)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if *self.ended.session.lock() == Session::Serving
            && let Err(error) = self.unmount(true)
        {
            tracing::warn!("{error}");
        }
    }
}
