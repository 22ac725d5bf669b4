//! What a mirror tells about itself, as data. The names of the fields are those of
//! `mirrorfs status --json` and stay.

use super::Failure;
use crate::config::{Local, Remote};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::SystemTime;

/// What a mirror is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Everything is at the replica.
    #[default]
    Idle,
    /// Source and index are being compared (first sync, after an unclean stop, …).
    Reconciling,
    /// Changes are on their way.
    Shipping,
    /// The mount is gone or going, the rest is on its way.
    Draining,
    /// The target cannot be reached; it is tried again by itself.
    Offline,
    /// It does not go on by itself; `halted` says why and what to do.
    Halted,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Idle => "idle",
            Phase::Reconciling => "reconciling",
            Phase::Shipping => "shipping",
            Phase::Draining => "draining",
            Phase::Offline => "offline",
            Phase::Halted => "halted",
        })
    }
}

/// The watermarks, each the newest epoch that is so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Epochs {
    /// Sealed here.
    pub sealed: u64,
    /// Sent with its commit.
    pub shipped: u64,
    /// On stable storage at the replica.
    pub durable: u64,
    /// In the replica's tree.
    pub applied: u64,
}

/// The connection to the replica.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Link {
    /// Whether the two sides speak.
    pub connected: bool,
    /// Since when it is so, RFC 3339; `None`: there has been no attempt yet.
    pub since: Option<String>,
    /// Why the last connection or attempt ended.
    pub last_error: Option<String>,
}

/// How far a long piece of work is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Progress {
    /// What it is, in a word or two.
    pub what: String,
    /// Objects looked at.
    pub objects: u64,
    /// Objects there are, as far as is known.
    pub objects_total: Option<u64>,
    /// Bytes of content sent or compared.
    pub bytes: u64,
}

/// What `mirrorfs status` shows of one mirror.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// What it is doing.
    pub state: Phase,
    /// Whether there is a mount.
    pub mounted: bool,
    /// The backing directory.
    pub source: String,
    /// The target as the user named it.
    pub target: String,
    /// Where it is mounted, or was.
    pub mountpoint: String,
    /// The state directory.
    pub state_dir: String,
    /// The process; `None` when there is none.
    pub pid: Option<u32>,
    /// Age of the oldest change that is not durable at the replica, in seconds; 0: there is none.
    pub lag_seconds: f64,
    /// Bytes of content that are not durable at the replica, at most.
    pub pending_bytes: u64,
    /// Changes that are not durable at the replica.
    pub pending_operations: u64,
    /// The watermarks.
    pub epochs: Epochs,
    /// The connection.
    pub link: Link,
    /// Bytes sent over all connections since the daemon started.
    pub bytes_shipped: u64,
    /// The hash of the tree that the replica has applied.
    pub root_hash: Option<String>,
    /// `--local`.
    pub local: Local,
    /// `--remote`.
    pub remote: Remote,
    /// Whether `--on-degraded continue` answers `fsync` without waiting just now.
    pub degraded: bool,
    /// How far a walk or a first sync is.
    pub progress: Option<Progress>,
    /// Why it is halted.
    pub halted: Option<Failure>,
    /// Version of the daemon.
    pub version: String,
}

impl Status {
    /// What is owed, in words; `None` when nothing is.
    #[must_use]
    pub fn owed(&self) -> Option<String> {
        let walk = match self.state {
            Phase::Reconciling => ", and the comparison of the source is not finished",
            _ => "",
        };
        if self.pending_operations == 0 && self.pending_bytes == 0 && walk.is_empty() {
            return match self.epochs.applied < self.epochs.sealed {
                true => Some(format!(
                    "epochs {} to {} are not applied yet",
                    self.epochs.applied + 1,
                    self.epochs.sealed
                )),
                false => None,
            };
        }
        Some(format!(
            "{} changes with up to {} bytes are not at the replica{walk}",
            self.pending_operations, self.pending_bytes
        ))
    }
}

/// The end of a drain: the replica has applied this, durably.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Receipt {
    /// The newest epoch.
    pub epoch: u64,
    /// The hash of the tree, in hexadecimal.
    pub root_hash: String,
    /// Bytes sent since the daemon started.
    pub bytes_shipped: u64,
    /// How long the drain took.
    pub seconds: f64,
}

/// A wall clock time as RFC 3339 in UTC, to the second.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let secs = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |age| age.as_secs());
    let (days, rest) = (secs / 86_400, secs % 86_400);
    // Days since 0000-03-01, in eras of 400 years: Howard Hinnant's civil_from_days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_print_as_date_does() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(
                rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(secs)),
                text
            );
        }
    }

    #[test]
    fn status_has_the_promised_keys() {
        let json = serde_json::to_value(Status::default()).expect("it encodes");
        assert_eq!(json["state"], "idle");
        for key in [
            "lag_seconds",
            "pending_bytes",
            "pending_operations",
            "target",
        ] {
            assert!(!json[key].is_null(), "{key}");
        }
        for key in ["sealed", "shipped", "durable", "applied"] {
            assert_eq!(json["epochs"][key], 0, "{key}");
        }
        assert_eq!(json["link"]["connected"], false);
        assert!(json["link"].get("since").is_some() && json["link"].get("last_error").is_some());
        let receipt = serde_json::to_value(Receipt::default()).expect("it encodes");
        for key in ["epoch", "root_hash", "bytes_shipped", "seconds"] {
            assert!(!receipt[key].is_null(), "{key}");
        }
    }

    #[test]
    fn what_is_owed_is_said() {
        let mut status = Status::default();
        assert_eq!(status.owed(), None);
        status.epochs.sealed = 3;
        assert_eq!(
            status.owed().as_deref(),
            Some("epochs 1 to 3 are not applied yet")
        );
        status.pending_operations = 2;
        assert!(status.owed().expect("owed").starts_with("2 changes"));
    }
}
