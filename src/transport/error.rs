//! What can go wrong on the way to a replica, what to do about it, and whether it may pass.

use std::io;
use std::path::PathBuf;

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// Why there is no link, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no target.
    #[error("{target:?} is no target: {reason}")]
    BadTarget {
        /// The text.
        target: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The user's remote shell command cannot be understood.
    #[error("{command:?} is no command: {reason}")]
    BadCommand {
        /// The text.
        command: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The user's remote shell cannot be started.
    #[error("cannot start {program:?}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file that connecting needs cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `~/.ssh/config` asks for something that the built-in client lacks.
    #[error("{} sets {keyword} for {host}, which the built-in ssh client lacks", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The setting.
        keyword: &'static str,
        /// The host.
        host: String,
    },
    /// The host's key is in no file of known hosts.
    #[error("the host key of {host} is not known: {key_type} {fingerprint}")]
    HostUnknown {
        /// The host, as known hosts name it.
        host: String,
        /// The type of the key.
        key_type: String,
        /// `SHA256:…`, as `ssh-keygen -l` prints it.
        fingerprint: String,
        /// Where it would stand.
        known_hosts: PathBuf,
    },
    /// The host shows another key than the known one: somebody may be listening.
    #[error(
        "the host key of {host} has CHANGED: it shows {key_type} {fingerprint}, but {}:{line} \
         holds another",
        known_hosts.display()
    )]
    HostKeyChanged {
        /// The host, as known hosts name it.
        host: String,
        /// The type of the key that it shows.
        key_type: String,
        /// `SHA256:…` of the key that it shows.
        fingerprint: String,
        /// Where the known key stands.
        known_hosts: PathBuf,
        /// In which line.
        line: usize,
    },
    /// The host shows a key that is marked as revoked.
    #[error("the host key of {host} is revoked by {}:{line}", known_hosts.display())]
    HostKeyRevoked {
        /// The host, as known hosts name it.
        host: String,
        /// Where the mark stands.
        known_hosts: PathBuf,
        /// In which line.
        line: usize,
    },
    /// The user's remote shell says that the host key is not known or has changed.
    #[error("the remote shell refused the host key of {host}: {stderr}")]
    HostKeyRefused {
        /// The host.
        host: String,
        /// What it said.
        stderr: String,
    },
    /// The host lets nobody in with what we have.
    #[error("{host} refused to let {user} in (tried: {tried})")]
    AuthenticationRefused {
        /// The host.
        host: String,
        /// The user there.
        user: String,
        /// What was tried.
        tried: String,
    },
    /// The host cannot be reached now.
    #[error("cannot reach {host} port {port}")]
    Unreachable {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The user's remote shell could not reach the host.
    #[error("the remote shell could not reach {host}: {stderr}")]
    ShellFailed {
        /// The host.
        host: String,
        /// What it said.
        stderr: String,
    },
    /// What the host speaks or says is no usable ssh.
    #[error("ssh to {host} failed while {during}: {message}")]
    Ssh {
        /// The host.
        host: String,
        /// What was being done.
        during: &'static str,
        /// What the library says.
        message: String,
    },
    /// The program is not there.
    #[error("{host} has no {command:?}: {stderr}")]
    RemoteMissing {
        /// The host.
        host: String,
        /// What was to be run there.
        command: String,
        /// What the remote said.
        stderr: String,
    },
    /// The remote side ended by itself, or was killed.
    #[error("the remote side on {host} ended with {status}: {stderr}")]
    RemoteFailed {
        /// The host.
        host: String,
        /// Its exit status or signal.
        status: String,
        /// The tail of what it said.
        stderr: String,
    },
    /// The connection broke.
    #[error("the connection to {host} broke: {message}")]
    Lost {
        /// The host.
        host: String,
        /// How.
        message: String,
    },
    /// This side closed it.
    #[error("the connection was closed by this side")]
    Closed,
    /// The system refuses what a link is made of.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether another attempt makes sense without somebody changing something first.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unreachable { .. }
            | Error::ShellFailed { .. }
            | Error::Ssh { .. }
            | Error::RemoteFailed { .. }
            | Error::Lost { .. }
            | Error::System { .. } => true,
            Error::BadTarget { .. }
            | Error::BadCommand { .. }
            | Error::Start { .. }
            | Error::File { .. }
            | Error::Unsupported { .. }
            | Error::HostUnknown { .. }
            | Error::HostKeyChanged { .. }
            | Error::HostKeyRevoked { .. }
            | Error::HostKeyRefused { .. }
            | Error::AuthenticationRefused { .. }
            | Error::RemoteMissing { .. }
            | Error::Closed => false,
        }
    }

    /// What the user can do about it, as a sentence; empty where there is nothing to say.
    #[must_use]
    pub fn next_step(&self) -> String {
        match self {
            Error::BadTarget { .. } => {
                "name a directory as /path, user@host:/path or ssh://user@host:port/path".into()
            }
            Error::BadCommand { .. } | Error::Start { .. } => {
                "give -e a command such as \"ssh -p 2222\"".into()
            }
            Error::File { .. } => "check that the file exists and that you may read it".into(),
            Error::Unsupported { .. } => "use the ssh program instead: -e ssh".into(),
            Error::HostUnknown { known_hosts, .. } => format!(
                "compare the fingerprint with the one that the host's owner gives you \
                 (ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub over there); if it is the same, pass \
                 --accept-new-host-key once, or add the key to {}",
                known_hosts.display()
            ),
            Error::HostKeyChanged {
                host, known_hosts, ..
            } => format!(
                "find out why before you go on; if the host was really set up anew: \
                 ssh-keygen -f {} -R '{host}'",
                known_hosts.display()
            ),
            Error::HostKeyRevoked { .. } => "ask the host's owner; the key must not be used".into(),
            Error::HostKeyRefused { .. } => {
                "connect once by hand with the same command, and compare the fingerprint".into()
            }
            Error::AuthenticationRefused { user, host, .. } => format!(
                "check that `ssh {user}@{host}` works, or name the key with -i; a daemon asks for \
                 no password after the first connect"
            ),
            Error::Unreachable { .. } | Error::ShellFailed { .. } => {
                "check the host's name, its port and the network".into()
            }
            Error::Ssh { .. } => "if it stays so, use the ssh program instead: -e ssh".into(),
            Error::RemoteMissing { .. } => {
                "install mirrorfs over there, or say where it is with --remote-path".into()
            }
            Error::RemoteFailed { .. } | Error::Lost { .. } => String::new(),
            Error::Closed | Error::System { .. } => String::new(),
        }
    }
}
