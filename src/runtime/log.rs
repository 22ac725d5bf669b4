//! The daemon's log: a file in the state directory, rotated at a bound, one old one kept.

use crate::limits::LOG_BYTES_MAX;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The log's name in a state directory.
pub const LOG_NAME: &str = "daemon.log";
const OLD_LOG_NAME: &str = "daemon.log.1";

/// A log file that rotates. All paths are relative to the state directory's descriptor.
#[derive(Clone, Debug)]
pub struct RotatingLog(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    dir: OwnedFd,
    file: File,
    length: u64,
}

impl RotatingLog {
    /// Opens the log in `dir`, to be appended to.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(dir: OwnedFd) -> io::Result<RotatingLog> {
        let file = open(&dir)?;
        let length = file.metadata()?.len();
        Ok(RotatingLog(Arc::new(Mutex::new(Inner {
            dir,
            file,
            length,
        }))))
    }
}

fn open(dir: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, LOG_NAME, flags | OFlags::NOFOLLOW, Mode::from(0o600))?;
    Ok(file.into())
}

impl Write for RotatingLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock();
        if inner.length + line.len() as u64 > LOG_BYTES_MAX && inner.length > 0 {
            // A log that cannot be rotated is cut: the bound matters more than old lines.
            if rustix::fs::renameat(&inner.dir, LOG_NAME, &inner.dir, OLD_LOG_NAME).is_err() {
                inner.file.set_len(0)?;
            }
            inner.file = open(&inner.dir)?;
            inner.length = 0;
        }
        inner.file.write_all(line)?;
        inner.length += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RotatingLog {
    type Writer = RotatingLog;
    fn make_writer(&'a self) -> RotatingLog {
        self.clone()
    }
}

/// Sends the events of this process to the log, panics included.
pub fn to_file(log: RotatingLog, verbose: u8) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(verbose, "info"))
        .with_ansi(false)
        .with_writer(log)
        .try_init();
    std::panic::set_hook(Box::new(
        |panic| tracing::error!(%panic, "a thread panicked"),
    ));
}

/// Sends the events of this process to standard error.
pub fn to_stderr(verbose: u8, default: &'static str) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter(verbose, default))
        .with_ansi(false)
        .with_writer(io::stderr)
        .try_init();
}

fn filter(verbose: u8, default: &'static str) -> EnvFilter {
    let level = match verbose {
        0 => default,
        1 => "debug",
        _ => "trace",
    };
    let chosen = std::env::var("MIRRORFS_LOG")
        .ok()
        .and_then(|text| text.parse().ok());
    chosen.unwrap_or_else(|| EnvFilter::new(format!("warn,mirrorfs={level}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stays_within_its_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        let open_dir = || OwnedFd::from(File::open(dir.path()).expect("it opens"));
        let mut log = RotatingLog::open(open_dir()).expect("a log");
        let line = vec![b'x'; 1024 * 1024];
        for _ in 0..20 {
            log.write_all(&line).expect("it writes");
        }
        let size = |name: &str| {
            std::fs::metadata(dir.path().join(name))
                .expect("a file")
                .len()
        };
        assert!(size(LOG_NAME) <= LOG_BYTES_MAX && size(OLD_LOG_NAME) <= LOG_BYTES_MAX);
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("a directory").count(),
            2
        );
    }
}
