//! Every error of the modules below as a failure of a command: exit code, causes, next step. One
//! place, so that the same trouble has the same code wherever it shows.

use super::ship;
use crate::control::{Exit, Failure};
use crate::mount::{MountError, UnmountError};
use crate::reconcile::SourceRefused;
use crate::wire::Refusal;
use crate::{records, replica, state, transport};
use std::io;

fn is_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        StorageFull | QuotaExceeded | ReadOnlyFilesystem
    ) || error.raw_os_error() == Some(libc::EIO)
}

/// A system call on this machine.
pub fn local(error: &io::Error) -> Failure {
    let exit = if is_disk(error) {
        Exit::LocalDisk
    } else {
        Exit::Failure
    };
    let failure = Failure::from_error(exit, error);
    match exit {
        Exit::LocalDisk => failure.next("make room on (or mend) the local disk and try again"),
        _ => failure,
    }
}

/// The state directory.
pub fn state(error: &state::Error) -> Failure {
    use state::Error as E;
    let (exit, next) = match error {
        E::Missing { .. } => (
            Exit::NotMounted,
            "mirrorfs mount SOURCE TARGET [MOUNTPOINT]",
        ),
        E::OtherOwner { .. } => (
            Exit::Busy,
            "give another --state-dir, or mount as its owner",
        ),
        E::InUse { .. } => (
            Exit::Busy,
            "`mirrorfs status` says what it does; unmount it first",
        ),
        E::Version { .. } => (
            Exit::Damaged,
            "use the program that wrote it, or another state",
        ),
        E::Damaged { .. } | E::Manifest { .. } | E::NoManifest { .. } | E::Broken { .. } => (
            Exit::Damaged,
            "move the state directory away and mount again with --adopt: only what differs is sent",
        ),
        E::Io { source, .. } => {
            let failure = Failure::from_error(Exit::LocalDisk, error);
            return match source.kind() {
                io::ErrorKind::PermissionDenied => failure.next("give another --state-dir"),
                _ => failure.next("make room on (or mend) the disk of the state directory"),
            };
        }
    };
    Failure::from_error(exit, error).next(next)
}

fn records_exit(error: &records::Error) -> Exit {
    use records::Error as E;
    match error {
        E::Missing { .. } | E::Version { .. } | E::Damaged { .. } => Exit::Damaged,
        E::InUse { .. } => Exit::Busy,
        E::Io { .. } | E::FellBack { .. } => Exit::LocalDisk,
        E::Inconsistent { .. } | E::Order { .. } => Exit::Failure,
    }
}

/// The index.
pub fn index(error: &records::Error) -> Failure {
    let exit = records_exit(error);
    Failure::from_error(exit, error).next(match exit {
        Exit::Damaged => {
            "move index.redb out of the state directory and mount again: it is made again from \
             what the replica holds"
        }
        Exit::Busy => "`mirrorfs status` says who uses it; unmount it first",
        _ => "make room on (or mend) the disk of the state directory and try again",
    })
}

/// The source is another one than before.
pub fn source(error: &SourceRefused) -> Failure {
    Failure::from_error(Exit::Refused, error).next(match error {
        SourceRefused::Empty { .. } => {
            "mount the disk that holds it; if it is to be empty: --allow-empty-source"
        }
        SourceRefused::Changed { .. } => {
            "check the path; if the replica is to become equal to it: --allow-changed-source"
        }
    })
}

/// Mounting.
pub fn mounting(error: &MountError) -> Failure {
    let (exit, next) = match error {
        MountError::Point { .. } => (Exit::Path, "name an empty directory that exists"),
        MountError::AlreadyMounted { .. } => (Exit::Busy, "`mirrorfs umount` it first"),
        MountError::Silent { .. } => (Exit::Busy, "end that process, then `umount -l` the mount"),
        MountError::Stale { .. } => (Exit::Busy, "`umount -l` it, then try again"),
        MountError::Device { source } if source.to_string().contains("ermission denied") => (
            Exit::Failure,
            "let its users open it (chmod 666 /dev/fuse, as udev does), or mount as root",
        ),
        MountError::Device { .. } => (Exit::Failure, "load the kernel's module: modprobe fuse"),
        MountError::AllowOther => (Exit::Failure, "ask root for that line, or mount as root"),
        MountError::Refused { .. } => (
            Exit::Failure,
            "check that fusermount3 (package fuse3) is installed, and that you own the mountpoint",
        ),
    };
    Failure::from_error(exit, error).next(next)
}

/// Unmounting.
pub fn unmounting(error: &UnmountError) -> Failure {
    let (exit, next) = match error {
        UnmountError::Busy { .. } => (Exit::Busy, "end what holds it, or use --lazy"),
        UnmountError::Covered { .. } => (Exit::Busy, "unmount what lies over it first"),
        UnmountError::Failed { .. } => (Exit::Failure, "try it with --lazy"),
    };
    Failure::from_error(exit, error).next(next)
}

/// The way to the replica.
pub fn transport(error: &transport::Error) -> Failure {
    use transport::Error as E;
    let exit = match error {
        E::BadTarget { .. } | E::BadCommand { .. } => Exit::Usage,
        E::Start { .. }
        | E::File { .. }
        | E::Unsupported { .. }
        | E::HostUnknown { .. }
        | E::HostKeyChanged { .. }
        | E::HostKeyRevoked { .. }
        | E::HostKeyRefused { .. }
        | E::AuthenticationRefused { .. }
        | E::Unreachable { .. }
        | E::ShellFailed { .. }
        | E::Ssh { .. }
        | E::RemoteMissing { .. }
        | E::RemoteFailed { .. }
        | E::Lost { .. }
        | E::Closed => Exit::Unreachable,
        E::System { .. } => Exit::Failure,
    };
    let failure = Failure::from_error(exit, error);
    match error.next_step() {
        next if next.is_empty() && exit == Exit::Unreachable => failure
            .next("try the connection by hand; the daemon's log may say more, over there too"),
        next if next.is_empty() => failure,
        next => failure.next(next),
    }
}

fn refusal(reason: Refusal) -> (Exit, &'static str) {
    match reason {
        Refusal::Version | Refusal::Protocol => (
            Exit::Version,
            "install the same version of mirrorfs on both sides",
        ),
        Refusal::Foreign => (
            Exit::Refused,
            "choose another target; to take this replica over from its primary: --adopt",
        ),
        Refusal::Fenced => (
            Exit::Refused,
            "a newer primary writes to it; to take it back: --adopt",
        ),
        Refusal::NotEmpty => (
            Exit::Refused,
            "choose an empty target; if it holds a copy of the source: --adopt",
        ),
        Refusal::Busy => (
            Exit::Busy,
            "end the session that serves it, or wait for its end",
        ),
        Refusal::Unusable => (
            Exit::ReplicaDisk,
            "make the target a directory that you can write to, with room",
        ),
        Refusal::Damaged => (
            Exit::Damaged,
            "run `mirrorfs recover TARGET` on the backup host, or take another",
        ),
    }
}

/// Shipping.
pub fn shipping(failure: &ship::Failure) -> Failure {
    use ship::FailureKind as K;
    let (exit, next) = match &failure.kind {
        K::Transport(error) => return self::transport(error),
        K::Refused(reason) => refusal(*reason),
        K::OtherReplica => (
            Exit::Refused,
            "check the target; if the replica was replaced on purpose: --adopt",
        ),
        K::Stalled => (
            Exit::ReplicaDisk,
            "make room on (or mend) the replica's disk",
        ),
        K::State => (
            Exit::LocalDisk,
            "make room on (or mend) the disk of the state directory",
        ),
        K::Protocol => (
            Exit::Version,
            "check that the program over there is mirrorfs, in the same version as here",
        ),
    };
    let mut shown = Failure::new(exit, failure.message.clone());
    shown.next = Some(failure.next_step.clone().unwrap_or_else(|| next.to_owned()));
    shown
}

/// A replica, on the backup host itself.
pub fn replica(error: &replica::ReplicaError) -> Failure {
    use replica::ReplicaError as E;
    let (exit, next) = match error {
        E::Refused { reason, .. } => refusal(*reason),
        E::Damaged { .. } | E::Invalid { .. } => (
            Exit::Damaged,
            "keep .mirrorfs as it is, and mount again from the primary with --adopt",
        ),
        E::Records(error) if records_exit(error) == Exit::Damaged => (
            Exit::Damaged,
            "keep .mirrorfs as it is, and mount again from the primary with --adopt",
        ),
        E::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            (Exit::NotMounted, "name the directory of a replica")
        }
        E::Io { .. } | E::Records(_) => (
            Exit::ReplicaDisk,
            "make room on (or mend) the disk, and try again",
        ),
        E::Wire(_) => (Exit::Unreachable, "the primary connects again by itself"),
        E::Stopped => (Exit::Failure, "run it again"),
    };
    Failure::from_error(exit, error).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn the_same_trouble_has_the_same_code_everywhere() {
        let shipped = |kind| {
            shipping(&ship::Failure {
                at: std::time::SystemTime::UNIX_EPOCH,
                message: "m".into(),
                next_step: None,
                kind,
                transient: false,
            })
        };
        use ship::FailureKind as K;
        for (kind, exit) in [
            (K::Refused(Refusal::Foreign), Exit::Refused),
            (K::Refused(Refusal::NotEmpty), Exit::Refused),
            (K::Refused(Refusal::Fenced), Exit::Refused),
            (K::Refused(Refusal::Busy), Exit::Busy),
            (K::Refused(Refusal::Unusable), Exit::ReplicaDisk),
            (K::Refused(Refusal::Damaged), Exit::Damaged),
            (K::Refused(Refusal::Version), Exit::Version),
            (K::OtherReplica, Exit::Refused),
            (K::Stalled, Exit::ReplicaDisk),
            (K::State, Exit::LocalDisk),
            (
                K::Transport(Arc::new(transport::Error::Closed)),
                Exit::Unreachable,
            ),
        ] {
            assert_eq!(shipped(kind).exit, exit);
        }
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(local(&full).exit, Exit::LocalDisk);
        assert_eq!(
            local(&io::Error::from_raw_os_error(libc::EACCES)).exit,
            Exit::Failure
        );
    }
}
