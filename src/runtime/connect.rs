//! How the shipper reaches the replica: over a transport, or in this process.

use super::ship::Connect;
use crate::limits::EMBEDDED_REPLICA_GRACE;
use crate::replica;
use crate::transport::{self, Closer, Connector, Link, Never, Terminal};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

/// A replica on another machine. While the user's terminal is at hand it may ask for secrets.
pub struct Remote {
    connector: Connector,
    terminal: Arc<AtomicBool>,
}

impl Remote {
    /// With everything that connecting needs; `terminal` is true as long as the terminal is
    /// there.
    #[must_use]
    pub fn new(connector: Connector, terminal: Arc<AtomicBool>) -> Remote {
        Remote {
            connector,
            terminal,
        }
    }
}

impl Connect for Remote {
    fn connect(&self, closer: &Closer) -> transport::Result<Link> {
        private_umask();
        match self.terminal.load(Ordering::SeqCst) {
            true => self
                .connector
                .connect(&Terminal::from_environment(), closer),
            false => self.connector.connect(&Never, closer),
        }
    }
}

/// The process has no umask, so that the mount creates what it is told to. The thread that connects
/// has one of its own: it, and the user's own ssh program, may write to `~/.ssh`.
fn private_umask() {
    // SAFETY: unsharing the working directory, root and umask of the calling thread touches no
    // descriptor and no memory; nothing in the process relies on threads sharing them.
    let alone = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) };
    if alone.is_ok() {
        rustix::process::umask(rustix::fs::Mode::from(0o077));
    }
}

/// A replica in this process: a thread serves it over a pair of sockets, as another process would.
#[derive(Clone)]
pub struct Embedded {
    root: PathBuf,
    serving: Arc<Mutex<Option<Serving>>>,
}

struct Serving {
    // Closed when the thread that serves has ended.
    ended: Receiver<()>,
    stop: replica::Stop,
}

impl Embedded {
    /// The replica in this directory.
    #[must_use]
    pub fn new(root: PathBuf) -> Embedded {
        Embedded {
            root,
            serving: Arc::default(),
        }
    }

    /// Waits until an apply that is under way has ended, but not without bounds: what is durable
    /// is applied later just as well.
    pub fn settle(&self) {
        let Some(Serving { ended, stop }) = self.serving.lock().take() else {
            return;
        };
        let timed_out = |patience| ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
        if timed_out(EMBEDDED_REPLICA_GRACE) {
            tracing::warn!("the replica is still applying; it goes on at the next start");
            stop.request();
            let _ = timed_out(EMBEDDED_REPLICA_GRACE);
        }
    }
}

impl Connect for Embedded {
    fn connect(&self, _: &Closer) -> transport::Result<Link> {
        // One at a time: the last one may still be applying.
        self.settle();
        let (link, far) = Link::pair()?;
        let system = |source| transport::Error::System {
            action: "serve the replica",
            source,
        };
        let (reader, end) = (
            far.try_clone().map_err(system)?,
            far.try_clone().map_err(system)?,
        );
        let (ends, ended) = channel::<()>();
        let stop = replica::Stop::default();
        let options = replica::ServeOptions {
            stop: stop.clone(),
            ..Default::default()
        };
        let (root, outcome) = (self.root.clone(), link.outcome.clone());
        std::thread::Builder::new()
            .name("replica".into())
            .spawn(move || {
                let served = replica::serve(&root, options, reader, far);
                if let Err(error) = served {
                    outcome.tell(transport::Error::RemoteFailed {
                        host: "this machine".into(),
                        status: "an error".into(),
                        stderr: error.chain(),
                    });
                }
                // The threads that it read and wrote with have ends of their own.
                let _ = end.shutdown(std::net::Shutdown::Both);
                drop(ends);
            })
            .map_err(system)?;
        *self.serving.lock() = Some(Serving { ended, stop });
        Ok(link)
    }
}
