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
        Remote { connector, terminal }
    }
}

impl Connect for Remote {
    fn connect(&self, closer: &Closer) -> transport::Result<Link> {
        match self.terminal.load(Ordering::SeqCst) {
            true => self.connector.connect(&Terminal::from_environment(), closer),
            false => self.connector.connect(&Never, closer),
        }
    }
}

/// A replica in this process: a thread serves it over a pair of sockets, as another process would.
#[derive(Clone)]
pub struct Embedded {
    root: PathBuf,
    // Closed when the thread that serves has ended.
    serving: Arc<Mutex<Option<Receiver<()>>>>,
}

impl Embedded {
    /// The replica in this directory.
    #[must_use]
    pub fn new(root: PathBuf) -> Embedded {
        Embedded { root, serving: Arc::default() }
    }

    /// Waits until an apply that is under way has ended; not without bounds, since what is
    /// durable is applied later just as well.
    pub fn settle(&self) {
        if let Some(serving) = self.serving.lock().take()
            && serving.recv_timeout(EMBEDDED_REPLICA_GRACE) == Err(RecvTimeoutError::Timeout)
        {
            tracing::warn!("the replica is still applying; it goes on at the next start");
        }
    }
}

impl Connect for Embedded {
    fn connect(&self, _: &Closer) -> transport::Result<Link> {
        // One at a time: the last one may still be applying.
        self.settle();
        let (link, far) = Link::pair()?;
        let system = |source| transport::Error::System { action: "serve the replica", source };
        let reader = far.try_clone().map_err(system)?;
        let (ended, serving) = channel::<()>();
        let (root, outcome) = (self.root.clone(), link.outcome.clone());
        std::thread::Builder::new()
            .name("replica".into())
            .spawn(move || {
                let served = replica::serve(&root, &replica::Options::default(), reader, far);
                if let Err(error) = served {
                    outcome.tell(transport::Error::RemoteFailed {
                        host: "this machine".into(),
                        status: "an error".into(),
                        stderr: error.chain(),
                    });
                }
                drop(ended);
            })
            .map_err(system)?;
        *self.serving.lock() = Some(serving);
        Ok(link)
    }
}
