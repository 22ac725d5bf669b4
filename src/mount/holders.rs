//! Who holds a mount: what a person needs to know when it is busy.
//!
//! Processes are looked at through `/proc`, with `AT_STATX_DONT_SYNC`, so that no request is sent
//! to the daemon that asks. Of processes of other users an ordinary user sees nothing.

use super::table::{Device, MountEntry};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a process does with a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// It stands in it.
    WorkingDirectory,
    /// It is its root directory.
    Root,
    /// It runs a program of it.
    Executable,
    /// It has something open.
    Open,
    /// It has something mapped into its memory.
    Mapped,
}

/// A process that holds a mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// How.
    pub usage: Use,
    /// What, as the process sees it.
    pub path: PathBuf,
}

/// What keeps a mount from being unmounted, as far as it can be seen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// Processes, one line each; at most [`crate::limits::HOLDERS_MAX`].
    pub processes: Vec<Holder>,
    /// Other file systems that are mounted in it.
    pub mounts: Vec<PathBuf>,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Use::WorkingDirectory => "stands in",
            Use::Root => "has as root",
            Use::Executable => "runs",
            Use::Open => "has open",
            Use::Mapped => "has mapped",
        })
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.processes.is_empty() && self.mounts.is_empty() {
            return f.write_str("no process that you may see holds it");
        }
        let mut separator = "";
        for Holder {
            pid,
            command,
            usage,
            path,
        } in &self.processes
        {
            write!(f, "{separator}{command} ({pid}) {usage} {}", path.display())?;
            separator = "; ";
        }
        for point in &self.mounts {
            write!(
                f,
                "{separator}a file system is mounted at {}",
                point.display()
            )?;
            separator = "; ";
        }
        Ok(())
    }
}

/// Who holds the file system `mount`, and what is mounted in it.
#[must_use]
pub fn of_mount(mount: &MountEntry) -> Holders {
    let mut holders = Holders {
        processes: processes(mount.device, None),
        mounts: Vec::new(),
    };
    if let Ok(table) = super::table::mounts() {
        let inside = table.into_iter().filter(|entry| entry.parent == mount.id);
        holders.mounts = inside
            .map(|entry| entry.point)
            .take(crate::limits::HOLDERS_MAX)
            .collect();
    }
    holders
}

/// Who is at work in the directory `path` of the file system `device`. Asked before it is mounted
/// over: those keep seeing the directory underneath, and what they change there is not captured.
#[must_use]
pub fn of_directory(device: Device, path: &Path) -> Holders {
    Holders {
        processes: processes(device, Some(path)),
        mounts: Vec::new(),
    }
}

fn processes(device: Device, below: Option<&Path>) -> Vec<Holder> {
    let Ok(list) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = std::process::id();
    let pids = list
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != own)
        .filter_map(|pid| process(pid, device, below))
        .take(crate::limits::HOLDERS_MAX)
        .collect()
}

// The first thing found is enough for a line.
fn process(pid: u32, device: Device, below: Option<&Path>) -> Option<Holder> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let (usage, path) = single_links(&directory, device, below)
        .or_else(|| open_files(&directory, device, below))
        .or_else(|| mappings(&directory, device, below))?;
    let command = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    Some(Holder {
        pid,
        command: command.trim_end().to_owned(),
        usage,
        path,
    })
}

fn single_links(process: &Path, device: Device, below: Option<&Path>) -> Option<(Use, PathBuf)> {
    let links = [
        ("cwd", Use::WorkingDirectory),
        ("root", Use::Root),
        ("exe", Use::Executable),
    ];
    links
        .into_iter()
        .find_map(|(name, usage)| Some((usage, leads_to(&process.join(name), device, below)?)))
}

fn open_files(process: &Path, device: Device, below: Option<&Path>) -> Option<(Use, PathBuf)> {
    let descriptors = std::fs::read_dir(process.join("fd")).ok()?;
    let mut paths = descriptors.flatten().map(|entry| entry.path());
    paths.find_map(|path| Some((Use::Open, leads_to(&path, device, below)?)))
}

fn mappings(process: &Path, device: Device, below: Option<&Path>) -> Option<(Use, PathBuf)> {
    let maps = std::fs::read(process.join("maps")).ok()?;
    let text = String::from_utf8_lossy(&maps);
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    text.lines().find_map(|line| {
        // address permissions offset device inode path
        let mut fields = line.split_ascii_whitespace();
        if fields.nth(3) != Some(&wanted) || fields.next() == Some("0") {
            return None;
        }
        let path = PathBuf::from(line.split_once('/').map(|(_, rest)| format!("/{rest}"))?);
        below
            .is_none_or(|below| path.starts_with(below))
            .then_some((Use::Mapped, path))
    })
}

fn leads_to(link: &Path, device: Device, below: Option<&Path>) -> Option<PathBuf> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let found = statx(CWD, link, flags, StatxFlags::TYPE).ok()?;
    if (found.stx_dev_major, found.stx_dev_minor) != (device.major, device.minor) {
        return None;
    }
    let path = std::fs::read_link(link).ok()?;
    below
        .is_none_or(|below| path.starts_with(below))
        .then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_stands_in_a_directory_is_found_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        let device = super::super::table::resolve(&path).unwrap().mount.device;
        let mut child = Command::new("cat")
            .current_dir(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let holders = of_directory(device, &path);
        drop(child.stdin.take());
        child.wait().unwrap();
        let found = holders
            .processes
            .iter()
            .find(|h| h.pid == child.id())
            .unwrap();
        assert_eq!((found.usage, &found.path), (Use::WorkingDirectory, &path));
        assert!(holders.to_string().contains("stands in"), "{holders}");
        assert!(
            of_directory(device, &path.join("none"))
                .processes
                .is_empty()
        );
    }
}
