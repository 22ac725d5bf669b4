//! Locks are the kernel's: they conflict as they should, and a blocked one can be interrupted.

use super::stand::{LIMIT, Stand, can_mount};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::path::Path;
use std::time::Instant;

extern "C" fn nothing(_signal: libc::c_int) {}

// A handler that does nothing, without SA_RESTART: a blocked call then answers EINTR.
fn handle_sigusr1() {
    // SAFETY: an all-zero sigaction is a valid value, and the handler touches nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        assert_eq!(
            libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()),
            0
        );
    }
}

fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

// The lock of an open file description, which conflicts within a process, too.
fn record_lock(file: &File, command: libc::c_int) -> io::Result<()> {
    // SAFETY: an all-zero flock is a valid value: from 0 to the end of the file, pid 0.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: the descriptor is open, and the pointer is to a flock that outlives the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open(path: &Path) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("a file")
}

#[test]
fn a_blocked_lock_is_interrupted_by_a_signal() {
    if !can_mount() {
        return;
    }
    handle_sigusr1();
    type Lock = fn(&File, libc::c_int) -> io::Result<()>;
    let kinds: [(Lock, libc::c_int, libc::c_int); 2] = [
        (flock, libc::LOCK_EX, libc::LOCK_EX | libc::LOCK_NB),
        (record_lock, libc::F_OFD_SETLKW, libc::F_OFD_SETLK),
    ];
    for no_open in [false, true] {
        let stand = Stand::new(no_open);
        let path = stand.point().join("locked");
        fs::write(&path, "x").expect("a write");
        for (lock, blocking, trying) in kinds {
            let holder = open(&path);
            lock(&holder, blocking).expect("a lock");
            let other = open(&path);
            let refused = lock(&other, trying).expect_err("it is locked");
            assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
            let waiter = std::thread::spawn(move || lock(&other, blocking));
            let deadline = Instant::now() + LIMIT;
            while !waiter.is_finished() {
                // It may not have blocked yet, so once is not enough.
                // SAFETY: the thread is not joined, so its id is valid.
                unsafe { libc::pthread_kill(waiter.as_pthread_t(), libc::SIGUSR1) };
                assert!(Instant::now() < deadline, "the lock cannot be interrupted");
                std::thread::yield_now();
            }
            let interrupted = waiter.join().expect("a thread").expect_err("interrupted");
            assert_eq!(interrupted.raw_os_error(), Some(libc::EINTR));
            drop(holder);
            lock(&open(&path), blocking).expect("free again");
        }
    }
}
