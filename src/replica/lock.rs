//! One serving process a replica: the lock, and how a newer session takes it from an older one.
//!
//! A half-open session (its link is dead and it does not know yet) would keep the replica busy
//! for as long as the kernel keeps a connection. The newer session therefore asks the holder to
//! end, and kills it past a deadline: an apply that is cut off is finished by whoever comes next.

use super::ReplicaError;
use super::error::Doing;
use super::home::Home;
use super::link::Stop;
use crate::limits::TAKEOVER_DEADLINE;
use crate::wire::Refusal;
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, Stat};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The replicas that this process serves, by the lock's inode, and how their sessions are asked to
/// stop. `flock` alone would do between processes.
static SERVED: Mutex<BTreeMap<(u64, u64), Stop>> = Mutex::new(BTreeMap::new());
static LEFT: Condvar = Condvar::new();

/// The right to change a replica, for as long as it lives.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    key: (u64, u64),
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        SERVED.lock().remove(&self.key);
        LEFT.notify_all();
    }
}

/// Takes the lock. `stop` is how to ask its holder to let go, `may_take_over` says whether the
/// present holder is one that this session fences.
pub(super) fn acquire(
    home: &Home,
    stop: &Stop,
    mut may_take_over: impl FnMut() -> bool,
) -> Result<Lock, ReplicaError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let action = || format!("cannot open lock in {}", home.path.display());
    let opened = rustix::fs::openat(&home.home, "lock", flags, Mode::RUSR | Mode::WUSR);
    let file = File::from(opened.doing(action)?);
    let stat = rustix::fs::fstat(&file).doing(action)?;
    let key = key(&stat);
    let deadline = Instant::now() + TAKEOVER_DEADLINE;
    {
        let mut served = SERVED.lock();
        while let Some(holder) = served.get(&key).cloned() {
            if !may_take_over() {
                return Err(busy(home, "this process"));
            }
            holder.request();
            if LEFT.wait_until(&mut served, deadline).timed_out() {
                return Err(busy(home, "this process"));
            }
        }
        served.insert(key, stop.clone());
    }
    // From here on dropping it lets others in.
    let lock = Lock { file, key };
    if !try_lock(&lock.file).doing(action)? {
        take_over(home, &lock, may_take_over)?;
    }
    write_pid(&lock.file).doing(action)?;
    Ok(lock)
}

fn try_lock(file: &File) -> std::io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn take_over(
    home: &Home,
    lock: &Lock,
    mut may_take_over: impl FnMut() -> bool,
) -> Result<(), ReplicaError> {
    let action = || format!("cannot lock {}", home.path.display());
    let Some(pid) = read_pid(&lock.file) else {
        // It has the lock and has not yet said who it is.
        return Err(busy(home, "a process that has just started"));
    };
    let holder = format!("process {}", pid.as_raw_nonzero());
    if !may_take_over() {
        return Err(busy(home, &holder));
    }
    // The descriptor first: what is then looked at cannot become another process.
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(_) if try_lock(&lock.file).doing(action)? => return Ok(()),
        Err(_) => return Err(busy(home, &holder)),
    };
    if !serves(pid, lock.key) {
        return match try_lock(&lock.file).doing(action)? {
            true => Ok(()),
            false => Err(busy(home, &holder)),
        };
    }
    tracing::info!(%holder, "a newer session takes the replica over");
    for signals in [&[Signal::TERM, Signal::CONT][..], &[Signal::KILL]] {
        for signal in signals {
            // It may be gone already.
            let _ = pidfd_send_signal(&process, *signal);
        }
        wait_for_end(&process, TAKEOVER_DEADLINE);
        if try_lock(&lock.file).doing(action)? {
            return Ok(());
        }
    }
    Err(busy(home, &holder))
}

fn busy(home: &Home, holder: &str) -> ReplicaError {
    let path = home.path.display();
    let message =
        format!("the replica {path} is being served by {holder}; try again when it ended");
    ReplicaError::refused(Refusal::Busy, message)
}

/// Whether a process is this program, and has this lock's file open.
fn serves(pid: Pid, key: (u64, u64)) -> bool {
    let pid = pid.as_raw_nonzero();
    let name = |pid: &str| {
        let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        // A program that was replaced since it started.
        Some(name.trim_end_matches(" (deleted)").to_owned())
    };
    let theirs = name(&pid.to_string());
    if theirs.is_none() || (theirs != name("self") && theirs.as_deref() != Some("mirrorfs")) {
        return false;
    }
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    open.flatten()
        .any(|entry| rustix::fs::stat(entry.path()).is_ok_and(|stat| self::key(&stat) == key))
}

#[allow(clippy::unnecessary_cast)]
fn key(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

fn wait_for_end(process: &OwnedFd, limit: Duration) {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            _ => return,
        }
    }
}

fn write_pid(mut file: &File) -> std::io::Result<()> {
    file.set_len(0)?;
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0))?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

fn read_pid(file: &File) -> Option<Pid> {
    let mut bytes = [0; 16];
    let read = file.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(bytes.get(..read)?).ok()?;
    Pid::from_raw(text.trim().parse().ok().filter(|pid| *pid > 1)?)
}
