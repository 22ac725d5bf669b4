//! Other processes of this program: waiting for their end.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::path::Path;
use std::time::{Duration, Instant};

/// Waits until the process that has locked a state directory is gone, or `patience` is over.
pub fn wait_for_owner(state_dir: &Path, patience: Duration) {
    // Its number is for messages; that it may be another's by now costs patience only.
    let owner = std::fs::read_to_string(state_dir.join("lock")).unwrap_or_default();
    if let Some(pid) = owner.trim().parse().ok().and_then(Pid::from_raw) {
        wait_for_end(pid, patience);
    }
}

/// Waits until the process is gone, or `patience` is over.
pub fn wait_for_end(pid: Pid, patience: Duration) {
    // That it cannot be opened means that it is gone.
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) if !left.is_zero() => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_end_of_a_process_is_waited_for() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat runs");
        let pid = Pid::from_child(&child);
        let began = Instant::now();
        wait_for_end(pid, Duration::from_millis(50));
        assert!(began.elapsed() >= Duration::from_millis(50), "it runs");
        drop(child.stdin.take());
        wait_for_end(pid, Duration::from_secs(60));
        assert!(began.elapsed() < Duration::from_secs(50));
        child.wait().expect("it ends");
        wait_for_end(pid, Duration::from_secs(60));
        let dir = tempfile::tempdir().expect("a directory");
        wait_for_owner(dir.path(), Duration::from_secs(60));
        assert!(began.elapsed() < Duration::from_secs(50));
    }
}
