//! Links to a replica: byte streams, and why they died.
//!
//! Owns how the two processes reach each other: in one process, through the user's own remote
//! shell (`-e`), or through the built-in ssh client. Every way yields a [`Link`]: two blocking
//! byte streams, a [`Closer`] that ends both from any thread, and an [`Outcome`] that says in the
//! end what went wrong. It understands no frame; the sender's threads know nothing of ssh.
//!
//! Invariants: whatever is read from a path (keys, `known_hosts`, `~/.ssh/config`, the agent's
//! socket) is opened by [`Connector::load`], which the runtime calls before it mounts, because the
//! mount may cover it; a reconnect opens no path. Everything that waits ends by a deadline or by
//! [`Closer::close`].

mod error;
mod link;
mod rsh;
mod ssh;
mod target;

pub use error::{Error, Result};
pub use link::{Closer, Link, Outcome};
pub use ssh::{Never, Prompt, Terminal};
pub use target::{Remote, Target};

use std::ffi::OsString;
use std::path::PathBuf;

/// How to reach a remote target: what the command line and the environment say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The user's own remote shell with its arguments (`-e`); `None`: the built-in ssh client.
    pub rsh: Option<String>,
    /// Where the program is over there; `None`: `mirrorfs`, found in the remote `PATH`.
    pub remote_path: Option<String>,
    /// More arguments of the remote `serve`, before the directory.
    pub serve_arguments: Vec<String>,
    /// The port, unless the target names one.
    pub port: Option<u16>,
    /// Private keys to try first (`-i`).
    pub identities: Vec<PathBuf>,
    /// The file of known hosts instead of the user's own.
    pub known_hosts: Option<PathBuf>,
    /// Trust a host that is not known yet, and remember its key.
    pub accept_new_host_key: bool,
    /// The user's home directory, for `~/.ssh`.
    pub home: Option<PathBuf>,
    /// The name to log in with where neither the target nor the configuration names one.
    pub login: Option<String>,
    /// The socket of the user's agent.
    pub agent: Option<PathBuf>,
    /// The program that asks for secrets without a terminal.
    pub askpass: Option<OsString>,
}

impl Options {
    /// Options with what the environment says: `HOME`, `USER`, `SSH_AUTH_SOCK`, `SSH_ASKPASS`.
    #[must_use]
    pub fn from_environment() -> Options {
        let filled = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let login = filled("USER").or_else(|| filled("LOGNAME"));
        Options {
            home: filled("HOME").map(PathBuf::from),
            login: login.and_then(|name| name.into_string().ok()),
            agent: filled("SSH_AUTH_SOCK").map(PathBuf::from),
            askpass: filled("SSH_ASKPASS"),
            ..Options::default()
        }
    }
}

/// Connects to one remote target, again and again.
#[derive(Debug)]
pub struct Connector {
    way: Way,
}

#[derive(Debug)]
enum Way {
    Rsh(rsh::Command),
    Ssh(Box<ssh::Client>),
}

impl Connector {
    /// Reads all that connecting needs. To be called before the mount; nothing is connected yet.
    ///
    /// # Errors
    /// A file that was named cannot be read, or the configuration of the host needs what the
    /// built-in client lacks.
    pub fn load(remote: &Remote, options: &Options) -> Result<Connector> {
        let way = match &options.rsh {
            Some(command) => Way::Rsh(rsh::Command::new(command, remote, options)?),
            None => Way::Ssh(Box::new(ssh::Client::load(remote, options)?)),
        };
        Ok(Connector { way })
    }

    /// Connects and starts the remote side. `prompt` may ask for passwords: give [`Terminal`] at
    /// the first connect and [`Never`] afterwards; what was answered is remembered in memory.
    /// `closer` ends the attempt or, later, the link; it is used up by that.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_transient`] says whether another attempt makes sense. With a
    /// remote shell most failures show only at the link's end: see [`Outcome::wait`].
    pub fn connect(&self, prompt: &dyn Prompt, closer: &Closer) -> Result<Link> {
        match &self.way {
            Way::Rsh(command) => command.connect(closer),
            Way::Ssh(client) => client.connect(prompt, closer),
        }
    }
}
