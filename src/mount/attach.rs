//! Putting a mount into the tree: as root with mount(2), as an ordinary user through the setuid
//! helper `fusermount3`, which hands the device over a socket.
//!
//! fuser could do it, but it would also unmount by path when its session ends, whatever is mounted
//! there by then (0.18 takes the kernel's "gone" for "still there"): over a source that is a mount
//! point itself, that would be the source.

use super::table::KIND;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::mount::MountFlags;
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::net::{SocketFlags, SocketType};
use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

/// What the mount is to be.
pub(super) struct Wanted {
    /// What the table of mounts shows as its source.
    pub(super) label: String,
    /// Let other users in.
    pub(super) allow_other: bool,
    /// The flags of the mount that the source is on: a tree means the same with the mount.
    pub(super) flags: StatVfsMountFlags,
}

/// Why it is not there.
pub(super) enum Failed {
    /// `/dev/fuse` cannot be opened.
    Device(io::Error),
    /// Only root may let other users in, as `/etc/fuse.conf` stands.
    AllowOther,
    /// Something else.
    Other(io::Error),
}

/// Mounts at `point`, and gives the device on which the requests come.
pub(super) fn attach(point: &Path, wanted: &Wanted) -> Result<OwnedFd, Failed> {
    match by_syscall(point, wanted) {
        Err(Failed::Other(error)) if error.raw_os_error() == Some(libc::EPERM) => {
            by_helper(point, wanted)
        }
        // The helper may open what its user may not.
        Err(Failed::Device(_)) if !rustix::process::geteuid().is_root() => by_helper(point, wanted),
        result => result,
    }
}

fn by_syscall(point: &Path, wanted: &Wanted) -> Result<OwnedFd, Failed> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
        .map_err(|error| Failed::Device(error.into()))?;
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    let mut data = format!(
        "fd={},rootmode={:o},user_id={user},group_id={group},default_permissions",
        device.as_raw_fd(),
        libc::S_IFDIR,
    );
    if wanted.allow_other {
        data.push_str(",allow_other");
    }
    let invalid = |error: std::ffi::NulError| Failed::Other(error.into());
    let data = CString::new(data).map_err(invalid)?;
    let pairs = [
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
    ];
    let inherited = pairs
        .iter()
        .filter(|(of_source, _)| wanted.flags.contains(*of_source));
    let flags = inherited.fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag);
    rustix::mount::mount(
        wanted.label.as_str(),
        point,
        KIND,
        flags,
        Some(data.as_c_str()),
    )
    .map_err(|error| Failed::Other(error.into()))?;
    Ok(device)
}

fn by_helper(point: &Path, wanted: &Wanted) -> Result<OwnedFd, Failed> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| Failed::Other(error.into()))?;
    let missing = |error: io::Error| {
        Failed::Other(io::Error::new(
            error.kind(),
            format!("fusermount3: {error}"),
        ))
    };
    let child = Command::new("fusermount3")
        .args(["-o", &helper_options(wanted), "--"])
        .arg(point)
        // Where the helper finds the socket; as its standard input it is inherited by nobody else.
        .env("_FUSE_COMMFD", "0")
        .env("LC_ALL", "C")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    let device = receive(&ours);
    let output = child.wait_with_output().map_err(Failed::Other)?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) => Err(Failed::Other(error)),
        Ok(_) => {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if message.contains("user_allow_other") {
                return Err(Failed::AllowOther);
            }
            let error = io::Error::other(message);
            let device = error.to_string().contains("/dev/fuse");
            Err(if device {
                Failed::Device(error)
            } else {
                Failed::Other(error)
            })
        }
    }
}

fn helper_options(wanted: &Wanted) -> String {
    // The helper takes a backslash for an escape; it adds nodev and nosuid itself.
    let label = wanted.label.replace('\\', "\\\\");
    let mut options = format!("fsname={label},subtype=mirrorfs,default_permissions");
    let pairs = [
        (wanted.allow_other, ",allow_other"),
        (wanted.flags.contains(StatVfsMountFlags::NOEXEC), ",noexec"),
        (
            wanted.flags.contains(StatVfsMountFlags::NOATIME),
            ",noatime",
        ),
        (wanted.flags.contains(StatVfsMountFlags::RDONLY), ",ro"),
    ];
    pairs
        .iter()
        .filter(|(is_wanted, _)| *is_wanted)
        .for_each(|(_, option)| {
            options.push_str(option);
        });
    options
}

// `None`: the helper has closed the socket without handing anything over.
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut data = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let mut received = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(received
        .next()
        .and_then(|mut descriptors| descriptors.next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(label: &str) -> Wanted {
        let flags = StatVfsMountFlags::NOEXEC;
        Wanted {
            label: label.to_owned(),
            allow_other: true,
            flags,
        }
    }

    #[test]
    fn the_helper_gets_options_that_it_can_read() {
        let options = helper_options(&wanted("/a\\b -> t"));
        let want = "fsname=/a\\\\b -> t,subtype=mirrorfs,default_permissions,allow_other,noexec";
        assert_eq!(options, want);
    }

    #[test]
    fn the_helper_hands_the_device_over_or_says_why_not() {
        if !Path::new("/dev/fuse").exists()
            || Command::new("fusermount3").arg("-V").output().is_err()
        {
            eprintln!("SKIPPED: no /dev/fuse, or no fusermount3");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let missing = by_helper(&directory.path().join("none"), &wanted("x"));
        let Err(Failed::Other(error)) = missing else {
            panic!("nothing can be mounted there")
        };
        assert!(error.to_string().contains("none"), "{error}");
        let plain = Wanted {
            allow_other: false,
            ..wanted("a -> b")
        };
        match by_helper(directory.path(), &plain) {
            Ok(device) => {
                let place = super::super::table::resolve(directory.path()).unwrap();
                assert_eq!(
                    (place.mount.is_ours(), &*place.mount.source),
                    (true, "a -> b")
                );
                drop(device);
                super::super::unmount::detach(directory.path()).unwrap();
            }
            Err(Failed::Device(error) | Failed::Other(error)) => {
                eprintln!("SKIPPED: this user cannot mount: {error}");
            }
            Err(Failed::AllowOther) => panic!("that was not asked for"),
        }
    }
}
