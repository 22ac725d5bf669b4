//! The description of a mirror that its state directory keeps, so that `drain` works with no
//! mount, and so that a path finds its mirror.

use super::{Local, OnDegraded, Remote, path_bytes, paths_bytes};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The version of `mirror.json` that this program writes. 1: the first.
pub const MIRROR_VERSION: u32 = 1;

/// A mirror: which directory, to where, mounted at which place, by which process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mirror {
    /// [`MIRROR_VERSION`] when it was written.
    pub version: u32,
    /// The backing directory, canonical.
    #[serde(with = "path_bytes")]
    pub source: PathBuf,
    /// The target; a local one is canonical.
    pub target: String,
    /// Where it is (or was last) mounted, canonical; the same as `source` for a mount over it.
    #[serde(with = "path_bytes")]
    pub mountpoint: PathBuf,
    /// The process that serves it, or served it last. Whether that one is alive the control
    /// socket says, not the number.
    pub pid: u32,
    /// The state directory, canonical.
    #[serde(with = "path_bytes")]
    pub state_dir: PathBuf,
    /// What the user asked for at the last mount.
    pub options: Options,
}

/// The options of a mount.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// `--local`.
    pub local: Local,
    /// `--remote`.
    pub remote: Remote,
    /// `--remote-timeout`.
    #[serde(with = "as_millis")]
    pub remote_timeout: Duration,
    /// `--on-degraded`.
    pub on_degraded: OnDegraded,
    /// `--port`.
    pub port: Option<u16>,
    /// `--identity`, absolute.
    #[serde(with = "paths_bytes")]
    pub identities: Vec<PathBuf>,
    /// `--known-hosts`, absolute; none or one.
    #[serde(with = "paths_bytes")]
    pub known_hosts: Vec<PathBuf>,
    /// `--accept-new-host-key`.
    pub accept_new_host_key: bool,
    /// `--rsh`.
    pub rsh: Option<String>,
    /// `--remote-path`.
    pub remote_path: Option<String>,
    /// `--allow-other`.
    pub allow_other: bool,
    /// `--exclude`, in order.
    pub excludes: Vec<String>,
    /// `--exclude-from`, absolute.
    #[serde(with = "paths_bytes")]
    pub exclude_from: Vec<PathBuf>,
    /// `--fake-super`.
    pub fake_super: bool,
    /// What mount(8) passes.
    pub flags: MountFlags,
    /// `--adopt`; for this mount only.
    #[serde(skip)]
    pub adopt: bool,
    /// `--allow-empty-source`; for this mount only.
    #[serde(skip)]
    pub allow_empty_source: bool,
    /// `--allow-changed-source`; for this mount only.
    #[serde(skip)]
    pub allow_changed_source: bool,
}

/// The generic flags of mount(8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MountFlags {
    /// `ro`: nothing can be changed through the mount.
    pub read_only: bool,
    /// `nosuid`.
    pub no_suid: bool,
    /// `nodev`.
    pub no_dev: bool,
    /// `noexec`.
    pub no_exec: bool,
    /// `noatime`.
    pub no_atime: bool,
}

mod as_millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Ok(Duration::from_millis(u64::deserialize(from)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn paths_of_any_bytes_survive_json() {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(b"/a/\xff".to_vec()));
        let mirror = Mirror {
            version: MIRROR_VERSION,
            source: odd.clone(),
            target: "host:/p".to_owned(),
            mountpoint: "/mnt".into(),
            pid: 7,
            state_dir: "/s".into(),
            options: Options {
                local: Local::Interval(Duration::from_secs(1)),
                identities: vec![odd],
                ..Options::default()
            },
        };
        let text = serde_json::to_string(&mirror).expect("it encodes");
        let read: Mirror = serde_json::from_str(&text).expect("it decodes");
        assert_eq!(read, mirror);
    }

    #[test]
    fn a_newer_program_may_add_fields() {
        let text = r#"{"version":1,"source":"/s","target":"/t","mountpoint":"/s","pid":1,
            "state_dir":"/d","options":{"local":"close"},"later":true}"#;
        let read: Mirror = serde_json::from_str(text).expect("it decodes");
        assert_eq!(read.options.local, Local::Close);
    }
}
