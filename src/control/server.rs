//! The side of the daemon: answers requests, on the current-thread runtime.

use super::socket::{make_outside, outside, short_path};
use super::{Exit, Failure, Receipt, Reply, Request, SOCKET_NAME, Status};
use crate::limits::{CONTROL_CLIENTS_MAX, CONTROL_LINE_BYTES_MAX};
use rustix::fs::AtFlags;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// How long a client may take to say what it wants, and to take a line.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How often a client that waits hears how it stands.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What the daemon can do for a client. All run on the daemon's one runtime thread and never
/// block it. A client that goes away cancels its own wait, not the work.
pub trait Service: 'static {
    /// See [`Request::Status`].
    fn status(&self) -> Status;
    /// See [`Request::Wait`].
    fn wait(&self, timeout: Option<Duration>) -> impl Future<Output = Result<u64, Failure>>;
    /// See [`Request::Drain`].
    fn drain(&self, timeout: Option<Duration>) -> impl Future<Output = Result<Receipt, Failure>>;
    /// See [`Request::Umount`].
    fn umount(
        &self,
        timeout: Option<Duration>,
        lazy: bool,
    ) -> impl Future<Output = Result<Receipt, Failure>>;
    /// See [`Request::Yield`]. Answers when the state is free.
    fn give_way(&self) -> impl Future<Output = Result<(), Failure>>;
}

/// The listening socket; removed when dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    dir: OwnedFd,
    slots: Arc<Semaphore>,
    // Its directory, if that is the server's own.
    outside: Option<PathBuf>,
}

/// Those that are being answered.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Semaphore>);

impl Clients {
    /// Waits until nobody is being answered.
    pub async fn gone(&self) {
        let all = u32::try_from(CONTROL_CLIENTS_MAX).unwrap_or(u32::MAX);
        let _ = self.0.acquire_many(all).await;
    }
}

impl Server {
    /// Listens outside of the state directory, because a mount covers that.
    ///
    /// # Errors
    /// When there is no place for the socket.
    pub fn bind_outside(state_dir: &Path) -> io::Result<Server> {
        let mut server = Server::bind(make_outside(state_dir)?)?;
        server.outside = Some(outside(state_dir));
        Ok(server)
    }

    /// Listens in the state directory `dir`, whose lock the caller holds: what is left of an
    /// earlier socket is removed.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn bind(dir: OwnedFd) -> io::Result<Server> {
        match rustix::fs::unlinkat(&dir, SOCKET_NAME, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let path = short_path(dir.as_fd());
        // The directory is private (0700), so nobody gets in between the two.
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Server {
            listener,
            dir,
            slots: Arc::new(Semaphore::new(CONTROL_CLIENTS_MAX)),
            outside: None,
        })
    }

    /// Those that are being answered: their tasks go on when the server is dropped.
    #[must_use]
    pub fn clients(&self) -> Clients {
        Clients(Arc::clone(&self.slots))
    }

    /// Serves until it is dropped. Must run inside a `LocalSet`.
    pub async fn run<S: Service>(self, service: Rc<S>) {
        loop {
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else {
                return;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let service = Rc::clone(&service);
                    tokio::task::spawn_local(async move {
                        let _slot = slot;
                        if let Err(error) = client(stream, &*service).await {
                            tracing::debug!(%error, "a client of the control socket went away");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, most likely: let others finish first.
                    tracing::warn!(%error, "control socket");
                    tokio::time::sleep(PROGRESS_INTERVAL).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.dir, SOCKET_NAME, AtFlags::empty());
        if let Some(outside) = &self.outside {
            let _ = std::fs::remove_dir(outside);
        }
    }
}

async fn client<S: Service>(stream: UnixStream, service: &S) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(CONTROL_LINE_BYTES_MAX as u64));
    let mut line = Vec::new();
    tokio::time::timeout(CLIENT_PATIENCE, reader.read_until(b'\n', &mut line)).await??;
    let request = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => request,
        Err(error) => {
            let failure = Failure::from_error(Exit::Usage, &error)
                .context("the daemon does not understand the request")
                .next("use the mirrorfs program of the same version as the mount");
            return send(&mut writer, &Reply::Failed { failure }).await;
        }
    };
    let mut answer = std::pin::pin!(answer(request, service));
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            reply = &mut answer => return send(&mut writer, &reply).await,
            _ = ticks.tick() => {
                let status = Box::new(service.status());
                send(&mut writer, &Reply::Progress { status }).await?;
            }
        }
    }
}

async fn answer<S: Service>(request: Request, service: &S) -> Reply {
    let span = |timeout_ms: Option<u64>| timeout_ms.map(Duration::from_millis);
    let result = match request {
        Request::Status => Ok(Reply::Status {
            status: Box::new(service.status()),
        }),
        Request::Wait { timeout_ms } => service
            .wait(span(timeout_ms))
            .await
            .map(|epoch| Reply::Durable { epoch }),
        Request::Drain { timeout_ms } => service
            .drain(span(timeout_ms))
            .await
            .map(|receipt| Reply::Receipt { receipt }),
        Request::Umount { timeout_ms, lazy } => service
            .umount(span(timeout_ms), lazy)
            .await
            .map(|receipt| Reply::Receipt { receipt }),
        Request::Yield => service.give_way().await.map(|()| Reply::Yielding),
    };
    result.unwrap_or_else(|failure| Reply::Failed { failure })
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    tokio::time::timeout(CLIENT_PATIENCE, writer.write_all(&line)).await?
}
