//! A mount that returns when it is usable. The process that the user started starts itself again
//! as a child, which does all the work with the user's terminal still at hand (passwords, the
//! first contact, messages), and only then leaves the terminal and says so over a pipe. Nothing
//! is ever forked once there are threads.

use crate::control::{Exit, Failure};
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

/// What the child says when the mount is usable.
const READY: &[u8] = b"ready\n";

/// Whom to tell that the mount is usable.
#[derive(Debug)]
pub struct Ready {
    parent: Option<File>,
}

impl Ready {
    /// There is no parent to be told: the process stays in the foreground.
    #[must_use]
    pub fn foreground() -> Ready {
        Ready { parent: None }
    }

    /// The parent waits at this descriptor.
    ///
    /// # Errors
    /// When there is no such descriptor.
    pub fn parent(descriptor: i32) -> Result<Ready, Failure> {
        let pipe = std::path::PathBuf::from(format!("/proc/self/fd/{descriptor}"));
        let is_pipe = std::fs::read_link(&pipe)
            .is_ok_and(|target| target.to_string_lossy().starts_with("pipe:"));
        if descriptor < 3 || !is_pipe {
            return Err(Failure::new(
                Exit::Usage,
                "--ready-descriptor is not for people",
            ));
        }
        // SAFETY: it was just seen to be an open pipe above standard error; the parent made it
        // for this process alone, and the argument is read once, so nothing else owns it.
        let pipe = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let _ = rustix::io::fcntl_setfd(&pipe, FdFlags::CLOEXEC);
        Ok(Ready {
            parent: Some(pipe.into()),
        })
    }

    /// Whether the process stays in the foreground.
    #[must_use]
    pub fn is_foreground(&self) -> bool {
        self.parent.is_none()
    }

    /// The mount is usable: leaves the terminal and the directory it was started in, then tells
    /// the parent.
    ///
    /// # Errors
    /// When the parent is gone: whoever started the mount has given up.
    pub fn tell(self) -> io::Result<()> {
        let Some(mut parent) = self.parent else {
            return Ok(());
        };
        // Fails only for the leader of a process group, which a child of the parent is not,
        // unless somebody started it in an unusual way; then it is no worse than before.
        let _ = rustix::process::setsid();
        rustix::process::chdir("/")?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        rustix::stdio::dup2_stdin(null.as_fd())?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
        parent.write_all(READY)
    }
}

/// Starts the mount in a child and waits until it is usable.
///
/// # Errors
/// When it cannot be started. When the mount failed the child has said why: the failure has its
/// exit code and no cause.
pub fn in_background(arguments: &[OsString]) -> Result<(), Failure> {
    let start = |error: io::Error| {
        Failure::from_error(Exit::Failure, &error).context("cannot start the daemon")
    };
    // Without CLOEXEC, so that the child inherits the writing end; this process has one thread.
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::empty()).map_err(|e| start(e.into()))?;
    rustix::io::fcntl_setfd(&reader, FdFlags::CLOEXEC).map_err(|e| start(e.into()))?;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&writer).to_string();
    let (program, rest) = match arguments.split_first() {
        Some((program, rest)) => (program.clone(), rest),
        None => ("mirrorfs".into(), arguments),
    };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(program)
        .args(with_descriptor(rest, &descriptor));
    let mut child = command.spawn().map_err(start)?;
    drop(writer);
    // The child looks who is at work in the source; this process is not.
    let _ = rustix::process::chdir("/");
    let mut said = Vec::new();
    let heard = File::from(reader)
        .take(READY.len() as u64)
        .read_to_end(&mut said);
    if heard.is_ok() && said == READY {
        return Ok(());
    }
    let status = child.wait().map_err(start)?;
    Err(ended(status))
}

/// The arguments of the child: those of the user, and where to say that it is ready.
fn with_descriptor(arguments: &[OsString], descriptor: &str) -> Vec<OsString> {
    let flag = OsString::from(format!("--ready-descriptor={descriptor}"));
    let at = arguments
        .iter()
        .position(|argument| argument == "mount")
        .map_or(0, |at| at + 1);
    let (before, after) = arguments.split_at(at);
    before
        .iter()
        .cloned()
        .chain([flag])
        .chain(after.iter().cloned())
        .collect()
}

fn ended(status: ExitStatus) -> Failure {
    let exit = status.code().and_then(|code| u8::try_from(code).ok());
    match exit.and_then(|code| Exit::try_from(code).ok()) {
        Some(exit) if exit != Exit::Done => Failure {
            exit,
            causes: Vec::new(),
            next: None,
        },
        _ => Failure::new(
            Exit::Failure,
            format!("the daemon ended before it was ready: {status}"),
        )
        .next("try again with --foreground -v"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_child_gets_the_same_arguments() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            with_descriptor(&words("-v mount a b -- c"), "5"),
            words("-v mount --ready-descriptor=5 a b -- c")
        );
    }

    #[test]
    fn a_descriptor_that_is_no_pipe_is_refused() {
        for descriptor in [-1, 0, 1, 2, 9999] {
            assert_eq!(
                Ready::parent(descriptor).expect_err("refused").exit,
                Exit::Usage
            );
        }
        assert!(Ready::foreground().tell().is_ok());
    }
}
