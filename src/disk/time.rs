//! The clock that file systems stamp with, and the boot that it belongs to.

use crate::model::{Stamp, Timestamp, Uuid};
use rustix::time::ClockId;
use std::io;
use std::time::Duration;

/// How far apart two changes can be and still get equal times: one step of the clock that file
/// systems stamp with.
#[must_use]
pub fn tick() -> Duration {
    let step = rustix::time::clock_getres(ClockId::RealtimeCoarse);
    let nanos = u64::try_from(step.tv_nsec).unwrap_or(0);
    // A file system may keep coarser times than the kernel's clock; below 10 ms nobody is misled.
    Duration::from_nanos(nanos).max(Duration::from_millis(10))
}

/// Now, by the clock that file systems stamp with.
#[must_use]
pub fn coarse_now() -> Timestamp {
    let now = rustix::time::clock_gettime(ClockId::RealtimeCoarse);
    Timestamp {
        secs: now.tv_sec,
        nanos: u32::try_from(now.tv_nsec).unwrap_or(0),
    }
}

/// Whether any later change of the object would give it another ctime, judged at `now`, which was
/// taken before its content was read. If not, a stamp proves nothing and is not to be trusted
/// (git's "racily clean").
#[must_use]
pub fn is_settled(stamp: &Stamp, now: Timestamp) -> bool {
    let nanos = |time: Timestamp| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let whole_seconds = stamp.ctime.nanos == 0;
    // Times without nanoseconds are those of a file system that keeps only seconds (2 on FAT).
    let margin = if whole_seconds {
        Duration::from_secs(2)
    } else {
        tick() * 2
    };
    let apart = (nanos(now) - nanos(stamp.ctime)).unsigned_abs();
    stamp.ctime != Timestamp::default() && apart > margin.as_nanos()
}

/// An id that changes with every boot of the machine.
///
/// # Errors
/// When /proc has none.
pub fn boot_id() -> io::Result<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    let bad = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's boot id is no UUID",
        )
    };
    if digits.len() != 32 {
        return Err(bad());
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
    }
    Ok(Uuid(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_within_a_tick_is_not_settled() {
        let now = Timestamp {
            secs: 1000,
            nanos: 500_000_000,
        };
        let at = |secs, nanos| Stamp {
            ctime: Timestamp { secs, nanos },
            ..Stamp::default()
        };
        assert!(!is_settled(&at(1000, 500_000_000), now));
        assert!(!is_settled(&at(1000, 499_000_000), now));
        assert!(is_settled(&at(1000, 300_000_000), now));
        assert!(
            is_settled(&at(1005, 300_000_000), now),
            "the clock was set back"
        );
        assert!(
            !is_settled(&at(999, 0), now),
            "a file system that keeps seconds"
        );
        assert!(!is_settled(&Stamp::default(), now));
    }
}
