//! The side of a command: one request, blocking.

use super::socket::{outside, short_path};
use super::{Reply, Request, Status};
use crate::limits::CONTROL_LINE_BYTES_MAX;
use rustix::fs::{Mode, OFlags};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a daemon may be silent; it says how it stands each second.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens there.
    #[error("no mirrorfs process serves {0}")]
    NoDaemon(PathBuf),
    /// It belongs to another user.
    #[error("the mirror with the state directory {0} belongs to another user")]
    Forbidden(PathBuf),
    /// The connection failed.
    #[error("the control socket in {path} failed")]
    Io {
        /// The state directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It answered what this program does not understand.
    #[error("the daemon of {path} answered what this version does not understand")]
    Answer {
        /// The state directory.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It ended without an answer.
    #[error("the daemon of {0} ended without an answer")]
    Ended(PathBuf),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    state_dir: PathBuf,
}

impl Client {
    /// Connects to the daemon that serves `state_dir`.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`] when none does; never waits for one.
    pub fn connect(state_dir: &Path) -> Result<Client, ClientError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::PermissionDenied => ClientError::Forbidden(state_dir.to_owned()),
            _ => ClientError::Io {
                path: state_dir.to_owned(),
                source,
            },
        };
        // The second is where it is when the mount covers the first.
        for directory in [state_dir, &outside(state_dir)] {
            match connect_in(directory) {
                Ok(stream) => {
                    return Ok(Client {
                        stream,
                        state_dir: state_dir.to_owned(),
                    });
                }
                Err(error) if is_nobody(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(ClientError::NoDaemon(state_dir.to_owned()))
    }

    /// Asks, and waits for the answer; `progress` hears how it stands meanwhile.
    ///
    /// # Errors
    /// When the connection fails or the daemon ends; never for a [`Reply::Failed`].
    pub fn call(
        mut self,
        request: &Request,
        progress: &mut dyn FnMut(&Status),
    ) -> Result<Reply, ClientError> {
        let path = self.state_dir.clone();
        let answer = |source| ClientError::Answer {
            path: path.clone(),
            source,
        };
        let io = |source| ClientError::Io {
            path: path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(request).map_err(answer)?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(io)?;
        let mut reader = BufReader::new(self.stream);
        loop {
            line.clear();
            let mut limited = reader.by_ref().take(CONTROL_LINE_BYTES_MAX as u64);
            let length = limited.read_until(b'\n', &mut line).map_err(io)?;
            if length == 0 {
                return Err(ClientError::Ended(path));
            }
            match serde_json::from_slice::<Reply>(&line).map_err(answer)? {
                Reply::Progress { status } => progress(&status),
                reply => return Ok(reply),
            }
        }
    }
}

fn connect_in(directory: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty())?;
    let stream = UnixStream::connect(short_path(directory.as_fd()))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    Ok(stream)
}

/// Nobody listens there; or it is below the mount of a daemon that is gone.
fn is_nobody(error: &io::Error) -> bool {
    let dead = matches!(
        error.raw_os_error(),
        Some(libc::ENOTCONN | libc::ECONNABORTED)
    );
    dead || matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::ConnectionRefused
    )
}
