//! Exit codes, and a failure as it is shown to people: causes, and what to do next.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The exit codes of the program: documented, and never renumbered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
#[repr(u8)]
pub enum Exit {
    /// All is done.
    Done = 0,
    /// A failure that has no code of its own.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A deadline passed and something is still owed; nothing is lost.
    Owed = 3,
    /// Refused to protect data: another's replica, files where none were expected, an
    /// unexpectedly empty or other source. An option names each.
    Refused = 4,
    /// The target cannot be reached: name, network, host key, authentication, program missing.
    Unreachable = 5,
    /// In use: the mountpoint, the mount, the state directory, the replica.
    Busy = 6,
    /// Not mounted, or no mirror is known there.
    NotMounted = 7,
    /// The local disk failed: full, read-only, I/O error.
    LocalDisk = 8,
    /// The replica's disk failed or cannot be written.
    ReplicaDisk = 9,
    /// The state directory or the replica's records are lost, damaged or unknown.
    Damaged = 10,
    /// The two sides speak no common version.
    Version = 11,
    /// The paths of source, target and mountpoint do not fit: missing, unreadable, nested.
    Path = 12,
}

impl Exit {
    /// All of them, with what they mean, for the help text.
    pub const ALL: &'static [(Exit, &'static str)] = &[
        (Exit::Done, "done"),
        (
            Exit::Failure,
            "failed, for a reason without a code of its own",
        ),
        (Exit::Usage, "the command line is wrong"),
        (
            Exit::Owed,
            "the deadline passed and something is still owed; nothing is lost",
        ),
        (
            Exit::Refused,
            "refused to protect data; an option named in the message overrides it",
        ),
        (
            Exit::Unreachable,
            "target unreachable: network, host key, login, program missing",
        ),
        (
            Exit::Busy,
            "in use: mountpoint, mount, state directory or replica",
        ),
        (Exit::NotMounted, "not mounted, or no such mirror"),
        (Exit::LocalDisk, "the local disk failed or is full"),
        (
            Exit::ReplicaDisk,
            "the replica's disk failed, is full or cannot be written",
        ),
        (
            Exit::Damaged,
            "state directory or replica records lost, damaged or unknown",
        ),
        (Exit::Version, "the two sides speak no common version"),
        (
            Exit::Path,
            "source, target or mountpoint missing, unreadable or nested",
        ),
    ];

    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> u8 {
        exit.code()
    }
}

impl TryFrom<u8> for Exit {
    type Error = String;
    fn try_from(code: u8) -> Result<Exit, String> {
        let known = Exit::ALL.iter().find(|(exit, _)| exit.code() == code);
        known
            .map(|(exit, _)| *exit)
            .ok_or_else(|| format!("no exit code {code}"))
    }
}

/// A failure as people see it, and as it crosses the control socket.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code it ends a command with.
    pub exit: Exit,
    /// What failed, then why, one cause an element.
    pub causes: Vec<String>,
    /// What the user can do about it.
    pub next: Option<String>,
}

impl Failure {
    /// A failure with one cause.
    #[must_use]
    pub fn new(exit: Exit, cause: impl Into<String>) -> Failure {
        Failure {
            exit,
            causes: vec![cause.into()],
            next: None,
        }
    }

    /// A failure from an error and all its sources. A source whose text ends the text before it
    /// is not repeated.
    #[must_use]
    pub fn from_error(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Failure {
        let mut causes: Vec<String> = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            if causes.last().is_none_or(|last| !last.ends_with(&text)) {
                causes.push(text);
            }
            next = error.source();
        }
        Failure {
            exit,
            causes,
            next: None,
        }
    }

    /// With what the user can do about it.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Failure {
        self.next = Some(next.into());
        self
    }

    /// With another cause in front.
    #[must_use]
    pub fn context(mut self, cause: impl Into<String>) -> Failure {
        self.causes.insert(0, cause.into());
        self
    }

    /// All causes in one line.
    #[must_use]
    pub fn line(&self) -> String {
        self.causes.join(": ")
    }
}

impl fmt::Display for Failure {
    /// As it is printed: `mirrorfs: what`, a `cause:` line each, and `next:`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, cause) in self.causes.iter().enumerate() {
            writeln!(
                f,
                "{}{cause}",
                if i == 0 { "mirrorfs: " } else { "  cause: " }
            )?;
        }
        match &self.next {
            Some(next) => writeln!(f, "  next: {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_stable_and_documented() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|(exit, _)| exit.code()).collect();
        assert_eq!(codes, (0..=12).collect::<Vec<u8>>());
        assert_eq!(Exit::Owed.code(), 3);
        assert_eq!(Exit::try_from(6), Ok(Exit::Busy));
        assert!(Exit::try_from(99).is_err());
        let docs = include_str!("../../docs/operations.md");
        for (exit, _) in Exit::ALL {
            assert!(
                docs.contains(&format!("| {} |", exit.code())),
                "{exit:?} is not documented"
            );
        }
    }

    #[test]
    fn a_failure_prints_one_line_a_cause_and_what_to_do() {
        let io = std::io::Error::other("disk on fire");
        let failure = Failure::from_error(Exit::LocalDisk, &io)
            .context("cannot write")
            .next("run");
        assert_eq!(
            failure.to_string(),
            "mirrorfs: cannot write\n  cause: disk on fire\n  next: run\n"
        );
    }
}
