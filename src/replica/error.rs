//! What can go wrong at a replica.

use crate::records;
use crate::wire::{Refusal, WireError};
use std::io;

/// Why a replica cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// A system call failed.
    #[error("{action}")]
    Io {
        /// What was being done, with the path.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The records cannot be read or written.
    #[error("the records of the replica")]
    Records(#[from] records::Error),
    /// The link or what came over it.
    #[error("the link to the primary")]
    Wire(#[from] WireError),
    /// The primary was refused, and told why.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        reason: Refusal,
        /// Why, for people.
        message: String,
    },
    /// An epoch that cannot be applied to what the replica holds.
    #[error("epoch {epoch} cannot be applied: {why}")]
    Invalid {
        /// The epoch.
        epoch: u64,
        /// Why.
        why: String,
    },
    /// A file of the replica's own is not what it should be.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// Which, relative to the replica.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// It was asked to stop; what is durable is applied by whoever serves the replica next.
    #[error("stopped")]
    Stopped,
}

/// Adds to an error what was being done.
pub(super) trait Doing<T> {
    /// `action` with the path, for people.
    fn doing<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, ReplicaError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, ReplicaError> {
        self.map_err(|error| {
            let source: io::Error = error.into();
            match source.get_ref() {
                // The hook that stands before every change was told to stop.
                Some(inner) if inner.is::<Halted>() => ReplicaError::Stopped,
                _ => ReplicaError::Io {
                    action: action().into(),
                    source,
                },
            }
        })
    }
}

/// Carried by the `io::Error` of a change that was not begun because of a stop.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub(super) struct Halted;

impl ReplicaError {
    /// A refusal.
    pub(super) fn refused(reason: Refusal, message: impl Into<String>) -> ReplicaError {
        ReplicaError::Refused {
            reason,
            message: message.into(),
        }
    }

    /// The error and its causes in one line, for the other side.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        crate::wire::bounded_text(text)
    }
}
