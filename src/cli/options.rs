//! The options of a mount, as flags and as `-o`.

use crate::config::{Local, MountFlags, OnDegraded, Options, Remote, parse_duration};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a `--remote received|durable` fsync waits without another word from the user.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of a mount. Each long option may also be given as `-o name=value`.
#[derive(clap::Args, Debug, Clone)]
pub struct OptionArgs {
    /// When a change is on this machine's stable storage: always, close, os, or at most this much
    /// later (1s) [default: os]
    #[arg(long, value_name = "MODE")]
    pub local: Option<Local>,
    /// What fsync waits for at the replica: async (nothing), received (in its memory) or durable
    /// (on its stable storage) [default: async]
    #[arg(long, value_name = "MODE")]
    pub remote: Option<Remote>,
    /// How long an fsync waits for the replica [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub remote_timeout: Option<Duration>,
    /// What an fsync does that waited so long: error (EIO) or continue [default: error]
    #[arg(long, value_name = "WHAT")]
    pub on_degraded: Option<OnDegraded>,
    /// Port of the ssh server
    #[arg(short, long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Private key to try first; may be given several times
    #[arg(short, long, value_name = "FILE")]
    pub identity: Vec<PathBuf>,
    /// File of known host keys instead of ~/.ssh/known_hosts
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
    /// Trust a host that is not known yet and remember its key; a changed key is always refused
    #[arg(long)]
    pub accept_new_host_key: bool,
    /// Remote shell to use instead of the built-in ssh client, as with rsync: -e "ssh -J gate"
    #[arg(short = 'e', long, value_name = "COMMAND")]
    pub rsh: Option<String>,
    /// Where mirrorfs is on the backup host
    #[arg(long, value_name = "PATH")]
    pub remote_path: Option<String>,
    /// Let other users use the mount, each with their own permissions
    #[arg(long)]
    pub allow_other: bool,
    /// Where mirrors keep their state [default: /var/lib/mirrorfs as root, else
    /// ~/.local/state/mirrorfs]
    #[arg(long, value_name = "DIR", env = "MIRRORFS_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Leave out what matches (gitignore syntax); it stays on this machine only
    #[arg(long, value_name = "PATTERN", allow_hyphen_values = true)]
    pub exclude: Vec<String>,
    /// Read patterns from a file, one a line
    #[arg(long, value_name = "FILE")]
    pub exclude_from: Vec<PathBuf>,
    /// Take over a target that already holds a copy, and send only what differs
    #[arg(long)]
    pub adopt: bool,
    /// Keep owners, modes and devices in the replica's records, as rsync's --fake-super does
    #[arg(long)]
    pub fake_super: bool,
    /// Mirror SOURCE though it is empty and the replica is not: deletes all at the replica
    #[arg(long)]
    pub allow_empty_source: bool,
    /// Mirror SOURCE though it is another directory than it was at the last mount
    #[arg(long)]
    pub allow_changed_source: bool,
    /// Options as mount(8) passes them
    #[arg(short = 'o', value_name = "NAME[=VALUE],...")]
    pub mount_options: Vec<String>,
}

impl OptionArgs {
    /// The options, with paths made absolute: the daemon does not stay where it was started.
    ///
    /// # Errors
    /// When the working directory is gone.
    pub fn resolve(&self) -> std::io::Result<Options> {
        let absolute = |paths: &[PathBuf]| -> std::io::Result<Vec<PathBuf>> {
            paths
                .iter()
                .map(|path| std::path::absolute(tilde(path)))
                .collect()
        };
        Ok(Options {
            local: self.local.unwrap_or_default(),
            remote: self.remote.unwrap_or_default(),
            remote_timeout: self.remote_timeout.unwrap_or(REMOTE_TIMEOUT),
            on_degraded: self.on_degraded.unwrap_or_default(),
            port: self.port,
            identities: absolute(&self.identity)?,
            known_hosts: absolute(self.known_hosts.as_slice())?,
            accept_new_host_key: self.accept_new_host_key,
            rsh: self.rsh.clone(),
            remote_path: self.remote_path.clone(),
            allow_other: self.allow_other,
            excludes: self.exclude.clone(),
            exclude_from: absolute(&self.exclude_from)?,
            fake_super: self.fake_super,
            flags: self.flags(),
            adopt: self.adopt,
            allow_empty_source: self.allow_empty_source,
            allow_changed_source: self.allow_changed_source,
        })
    }

    fn flags(&self) -> MountFlags {
        let mut flags = MountFlags::default();
        for name in self
            .mount_options
            .iter()
            .flat_map(|list| super::mount_options::split(list))
        {
            match name.as_str() {
                "ro" => flags.read_only = true,
                "rw" => flags.read_only = false,
                "nosuid" => flags.no_suid = true,
                "suid" => flags.no_suid = false,
                "nodev" => flags.no_dev = true,
                "dev" => flags.no_dev = false,
                "noexec" => flags.no_exec = true,
                "exec" => flags.no_exec = false,
                "noatime" => flags.no_atime = true,
                "atime" => flags.no_atime = false,
                _ => {}
            }
        }
        flags
    }
}

/// In `-o identity=~/.ssh/key` and in fstab no shell has replaced the tilde.
fn tilde(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_owned(),
    }
}
