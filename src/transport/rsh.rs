//! A link through the user's own remote shell: `-e ssh`, with everything that it can do
//! (`ProxyJump`, hardware keys, its whole configuration). The shell is a child process; one
//! thread keeps the tail of what it says, and tells in the end what became of it.

use super::error::{Error, Result};
use super::link::{Closer, Link, Outcome, Tail, poll};
use super::target::{Remote, serve_command};
use crate::limits::REMOTE_SHELL_GRACE;
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::time::Instant;

/// The exit status with which ssh says that it failed itself.
const SSH_FAILED: i32 = 255;
/// The exit status with which a shell says that there is no such command.
const NOT_FOUND: i32 = 127;

/// A remote shell, ready to be started.
#[derive(Clone, Debug)]
pub(super) struct Command {
    words: Vec<String>,
    host: String,
    user: String,
    remote_command: String,
}

impl Command {
    pub(super) fn new(text: &str, remote: &Remote, options: &super::Options) -> Result<Command> {
        let bad = |reason| Error::BadCommand {
            command: text.to_owned(),
            reason,
        };
        let mut words = split(text).map_err(bad)?;
        if words.is_empty() {
            return Err(bad("it is empty"));
        }
        if let Some(user) = &remote.user {
            words.extend(["-l".to_owned(), user.clone()]);
        }
        if let Some(port) = remote.port.or(options.port) {
            words.extend(["-p".to_owned(), port.to_string()]);
        }
        let remote_command = serve_command(remote, options);
        words.extend([remote.host.clone(), remote_command.clone()]);
        let user = remote.user.clone().unwrap_or_else(|| "you".to_owned());
        Ok(Command {
            words,
            host: remote.host.clone(),
            user,
            remote_command,
        })
    }

    pub(super) fn connect(&self, closer: &Closer) -> Result<Link> {
        if closer.is_closed() {
            return Err(Error::Closed);
        }
        let system = |action| move |source| Error::System { action, source };
        let (link, far) = Link::new(closer)?;
        let stdin = far.try_clone().map_err(system("share a socket"))?;
        let mut child = std::process::Command::new(&self.words[0])
            .args(&self.words[1..])
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(stdin)))
            .stdout(Stdio::from(OwnedFd::from(far)))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start {
                program: self.words[0].clone(),
                source,
            })?;
        let stderr = child.stderr.take();
        let keeper = Keeper {
            child,
            stderr,
            command: self.clone(),
            closer: closer.clone(),
            outcome: link.outcome.clone(),
        };
        std::thread::Builder::new()
            .name("rsh".to_owned())
            .spawn(move || keeper.run())
            .map_err(system("start a thread"))?;
        Ok(link)
    }

    /// What an exit means.
    fn explain(&self, status: ExitStatus, stderr: String) -> Error {
        let host = self.host.clone();
        let said = |part: &str| stderr.contains(part);
        match status.code() {
            Some(NOT_FOUND) => Error::RemoteMissing {
                host,
                command: self.remote_command.clone(),
                stderr,
            },
            Some(SSH_FAILED) if said("Host key verification failed") || said("HOST IDENT") => {
                Error::HostKeyRefused { host, stderr }
            }
            Some(SSH_FAILED) if said("Permission denied") || said("authentication fail") => {
                Error::AuthenticationRefused {
                    host,
                    user: self.user.clone(),
                    tried: stderr,
                }
            }
            Some(SSH_FAILED) => Error::ShellFailed { host, stderr },
            Some(0) => Error::Lost {
                host,
                message: "the remote side ended".to_owned(),
            },
            Some(code) => Error::RemoteFailed {
                host,
                status: format!("exit status {code}"),
                stderr,
            },
            None => {
                let signal = status.signal().unwrap_or_default();
                Error::RemoteFailed {
                    host,
                    status: format!("signal {signal}"),
                    stderr,
                }
            }
        }
    }
}

/// Waits for the child, and ends it when the link is closed.
struct Keeper {
    child: Child,
    stderr: Option<ChildStderr>,
    command: Command,
    closer: Closer,
    outcome: Outcome,
}

impl Keeper {
    fn run(mut self) {
        let mut tail = Tail::default();
        let ended = self.watch(&mut tail);
        if ended.is_err() {
            let _ = self.child.kill();
        }
        let reason = match (self.child.wait(), ended) {
            _ if self.closer.is_closed() => Error::Closed,
            (_, Err(error)) => error,
            (Ok(status), Ok(())) => self.command.explain(status, tail.text()),
            (Err(source), Ok(())) => Error::System {
                action: "wait for the remote shell",
                source,
            },
        };
        self.outcome.tell(reason);
        // A grandchild may still hold the other end: who reads or writes must not wait for it.
        self.closer.close();
    }

    /// Returns when the child has ended and said its last words.
    fn watch(&mut self, tail: &mut Tail) -> Result<()> {
        let system = |action| {
            move |errno: rustix::io::Errno| Error::System {
                action,
                source: errno.into(),
            }
        };
        let pid = Pid::from_child(&self.child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(system("watch the remote shell"))?;
        if let Some(stderr) = &self.stderr {
            rustix::io::ioctl_fionbio(stderr, true).map_err(system("set up a pipe"))?;
        }
        let mut kill_at: Option<Instant> = None;
        loop {
            let nothing = PollFlags::empty();
            let words = if self.stderr.is_some() {
                PollFlags::IN
            } else {
                nothing
            };
            let closing = if kill_at.is_none() {
                PollFlags::IN
            } else {
                nothing
            };
            let stderr_fd = self.stderr.as_ref().map_or(pidfd.as_fd(), AsFd::as_fd);
            let mut fds = [
                PollFd::new(&pidfd, PollFlags::IN),
                PollFd::from_borrowed_fd(self.closer.event(), closing),
                PollFd::from_borrowed_fd(stderr_fd, words),
            ];
            poll(
                &mut fds,
                kill_at.map(|at| at.saturating_duration_since(Instant::now())),
            )?;
            let [exited, closed, _] = fds.map(|fd| !fd.revents().is_empty());
            self.listen(tail);
            if exited {
                return Ok(());
            }
            if closed && kill_at.is_none() {
                let _ = rustix::process::kill_process(pid, Signal::TERM);
                kill_at = Some(Instant::now() + REMOTE_SHELL_GRACE);
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                kill_at = Some(Instant::now() + REMOTE_SHELL_GRACE);
            }
        }
    }

    /// Takes in what the child has said so far.
    fn listen(&mut self, tail: &mut Tail) {
        let mut buffer = [0; 4096];
        while let Some(stderr) = &mut self.stderr {
            match stderr.read(&mut buffer) {
                Ok(0) => self.stderr = None,
                Ok(count) => tail.push(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.stderr = None,
            }
        }
    }
}

/// Splits a command into words at spaces, with the quotes of a shell but nothing else of it.
fn split(text: &str) -> std::result::Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    #[test]
    fn commands_are_split_as_a_shell_does() {
        let words = |text| super::split(text).unwrap();
        assert_eq!(words(" ssh -p  22 "), ["ssh", "-p", "22"]);
        assert_eq!(
            words("ssh -o 'a b' \"c'd\"e ''"),
            ["ssh", "-o", "a b", "c'de", ""]
        );
        assert!(super::split("ssh 'x").is_err());
    }
}
