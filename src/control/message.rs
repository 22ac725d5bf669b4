//! What a command says to a daemon, and what it hears.

use super::{Failure, Receipt, Status};
use serde::{Deserialize, Serialize};

/// The first and only line of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Request {
    /// What are you doing? Answered with [`Reply::Status`].
    Status,
    /// Answer when what was written before is durable at the replica.
    Wait {
        /// Give up after so many milliseconds.
        timeout_ms: Option<u64>,
    },
    /// Ship and apply everything, and answer with [`Reply::Receipt`].
    Drain {
        /// Give up after so many milliseconds.
        timeout_ms: Option<u64>,
    },
    /// Drain, unmount, drain the rest, end. Answered with [`Reply::Receipt`].
    Umount {
        /// Give up waiting after so many milliseconds; the mount goes all the same, and the
        /// daemon drains on.
        timeout_ms: Option<u64>,
        /// Detach a mount that is in use.
        lazy: bool,
    },
    /// A mount wants the state: stop draining at a safe point and end. Refused while mounted.
    Yield,
}

/// A line of a daemon. The last one is not [`Reply::Progress`].
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    /// It takes longer; this is how it stands.
    Progress {
        /// How it stands.
        status: Box<Status>,
    },
    /// See [`Request::Status`].
    Status {
        /// How it stands.
        status: Box<Status>,
    },
    /// The wait is over.
    Durable {
        /// The newest durable epoch.
        epoch: u64,
    },
    /// See [`Request::Drain`] and [`Request::Umount`].
    Receipt {
        /// The receipt.
        receipt: Receipt,
    },
    /// The daemon ends.
    Yielding,
    /// It did not work out.
    Failed {
        /// Why.
        failure: Failure,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_readable_lines() {
        let line = serde_json::to_string(&Request::Umount {
            timeout_ms: Some(5),
            lazy: false,
        })
        .expect("it encodes");
        assert_eq!(line, r#"{"command":"umount","timeout_ms":5,"lazy":false}"#);
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"command":"status"}"#).expect("it decodes"),
            Request::Status
        );
        assert!(serde_json::from_str::<Request>(r#"{"command":"format"}"#).is_err());
    }
}
