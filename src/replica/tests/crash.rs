//! The apply of an epoch, cut off at every step; what is then done again must end in the same
//! tree. Also when a power failure has lost any of what was done since the last sync.

use super::super::tree::{Change, Hook, Place, halted};
use super::model::{commit, compare, make, open, place, try_open};
use super::world::{Dice, World};
use crate::model::FileId;
use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Ends the process before step number `left`. If `lose` is not 0, one in so many of the steps
/// since the last sync is then undone: the power has failed, and they had not reached the disk.
#[derive(Debug)]
struct Crash {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: usize,
    lose: usize,
    dice: u64,
    unsynced: Vec<Undo>,
}

#[derive(Debug)]
struct Spot(OwnedFd, OsString);

/// What takes a change back, as far as the disk could have lost it.
#[derive(Debug)]
enum Undo {
    Move {
        from: Spot,
        to: Spot,
        inode: u64,
        victim: Option<OwnedFd>,
    },
    Name(Spot),
    Unlink(Spot, OwnedFd),
    Content {
        file: File,
        at: u64,
        bytes: Vec<u8>,
        size: u64,
    },
    Attributes(OwnedFd, Box<Stat>),
}

impl Spot {
    fn of((at, name): Place<'_>) -> Spot {
        Spot(at.try_clone().expect("a descriptor"), name.to_owned())
    }
    fn inode(&self) -> Option<u64> {
        let stat = rustix::fs::statat(&self.0, &self.1, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(stat.st_ino)
    }
    fn handle(&self) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.0, &self.1, flags, Mode::empty()).ok()
    }
    // Works as long as the object has another name.
    fn restore(&self, object: &OwnedFd) {
        let _ = rustix::fs::linkat(object, "", &self.0, &self.1, AtFlags::EMPTY_PATH);
    }
}

impl Undo {
    fn of(change: Change<'_>) -> Option<Undo> {
        Some(match change {
            Change::Rename(from, to) | Change::RenameOver(from, to) => {
                let (from, to) = (Spot::of(from), Spot::of(to));
                let inode = from.inode()?;
                let victim = to.handle();
                Undo::Move {
                    from,
                    to,
                    inode,
                    victim,
                }
            }
            Change::Link(at) | Change::Make(at) => Undo::Name(Spot::of(at)),
            Change::Unlink(at) => {
                let spot = Spot::of(at);
                let object = spot.handle()?;
                Undo::Unlink(spot, object)
            }
            Change::Write(file, extent) => content(file, extent.offset, extent.length),
            Change::Cut(file) => content(file, 0, u64::MAX),
            Change::Attributes(fd) => {
                let stat = rustix::fs::fstat(fd).expect("stat");
                Undo::Attributes(
                    fd.try_clone_to_owned().expect("a descriptor"),
                    Box::new(stat),
                )
            }
            Change::Delete | Change::Sync | Change::Look => return None,
        })
    }

    fn undo(self) {
        match self {
            Undo::Move {
                from,
                to,
                inode,
                victim,
            } => {
                if to.inode() == Some(inode) {
                    let flags = RenameFlags::NOREPLACE;
                    let moved = rustix::fs::renameat_with(&to.0, &to.1, &from.0, &from.1, flags);
                    if let (Ok(()), Some(victim)) = (moved, victim) {
                        to.restore(&victim);
                    }
                }
            }
            Undo::Name(spot) => {
                let flags = [AtFlags::empty(), AtFlags::REMOVEDIR];
                for flags in flags {
                    let _ = rustix::fs::unlinkat(&spot.0, &spot.1, flags);
                }
            }
            Undo::Unlink(spot, object) => spot.restore(&object),
            Undo::Content {
                file,
                at,
                bytes,
                size,
            } => {
                file.set_len(size).expect("cut");
                file.write_all_at(&bytes, at).expect("written");
            }
            Undo::Attributes(fd, stat) => restore_attributes(&fd, &stat),
        }
    }
}

fn content(file: &File, at: u64, length: u64) -> Undo {
    let size = file.metadata().expect("stat").len();
    let mut bytes = vec![0; size.saturating_sub(at).min(length) as usize];
    file.read_exact_at(&mut bytes, at.min(size)).expect("read");
    let file = file.try_clone().expect("a descriptor");
    Undo::Content {
        file,
        at,
        bytes,
        size,
    }
}

fn restore_attributes(fd: &OwnedFd, stat: &Stat) {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let _ = rustix::fs::chownat(fd, "", Some(owner.0), Some(owner.1), flags);
    if stat.st_mode & libc::S_IFMT != libc::S_IFLNK {
        let _ = rustix::fs::chmod(&path, Mode::from_raw_mode(stat.st_mode & 0o7777));
        let time = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as i64,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let _ = rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::empty());
    }
}

impl Crash {
    fn at(left: usize, lose: usize, dice: u64) -> Arc<Crash> {
        let state = State {
            left,
            lose,
            dice,
            unsynced: Vec::new(),
        };
        Arc::new(Crash {
            state: Mutex::new(state),
        })
    }
}

impl Hook for Crash {
    fn before(&self, change: Change<'_>) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.left == 0 {
            let mut dice = Dice(state.dice);
            let lose = state.lose;
            for undo in state.unsynced.drain(..).rev() {
                if dice.chance(lose) {
                    undo.undo();
                }
            }
            return Err(halted());
        }
        state.left -= 1;
        if matches!(change, Change::Sync) {
            state.unsynced.clear();
        } else if state.lose > 0 {
            state.unsynced.extend(Undo::of(change));
        }
        Ok(())
    }
}

fn copy_of(root: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(root).arg(to).status();
    assert!(status.expect("cp").success());
}

/// A replica with one applied state and one durable epoch or more.
fn prepare(root: &Path, seed: u64, together: usize) -> World {
    let dice = &mut Dice(seed);
    make(root);
    let mut world = World::new();
    let mut before = world.clone();
    before
        .things
        .get_mut(&FileId::ROOT)
        .expect("root")
        .object
        .attributes
        .uid = 7;
    for _ in 0..12 {
        world.change(dice);
    }
    let (engine, mut stage) = open(root, None);
    commit(&engine, &mut stage, &world.epoch(&before, dice));
    engine.run_once().expect("applied");
    // Its records are open only once.
    drop((engine, stage));
    let (engine, mut stage) = open(root, None);
    for _ in 0..together {
        let before = world.clone();
        while world == before {
            for _ in 0..dice.roll(8) + 1 {
                world.change(dice);
            }
        }
        commit(&engine, &mut stage, &world.epoch(&before, dice));
    }
    world
}

/// Applies with a crash; whether it was through before.
fn crash(root: &Path, hook: Arc<Crash>, all: bool) -> bool {
    let Ok((engine, _)) = try_open(root, Some(hook)) else {
        return false;
    };
    // Together: as when they wait for the thread.
    if all {
        engine.forget_begun();
    }
    engine.run_once().is_ok()
}

fn cut_off_everywhere(seed: u64, together: usize, lose: usize) {
    let place = place();
    let before = place.path().join("before");
    std::fs::create_dir(&before).expect("made");
    let world = prepare(&before, seed, together);
    for step in 0.. {
        let root = place.path().join(format!("now-{step}"));
        copy_of(&before, &root);
        let mut dice = Dice(seed ^ step as u64);
        let hook = Crash::at(step, lose, dice.roll(usize::MAX) as u64);
        let through = crash(&root, hook, together > 1);
        // Again, somewhere in the replay.
        if dice.chance(2) {
            let hook = Crash::at(dice.roll(step + 1), lose, dice.roll(usize::MAX) as u64);
            crash(&root, hook, false);
        }
        let (engine, _) = open(&root, None);
        engine.run_once().expect("recovered");
        compare(&root, &world);
        std::fs::remove_dir_all(&root).expect("removed");
        if through {
            break;
        }
    }
}

/// More to hunt with.
const CASES: u32 = match option_env!("MIRRORFS_CASES") {
    Some(_) => 600,
    None => 12,
};

proptest! {
    #![proptest_config(ProptestConfig {
        cases: CASES,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn an_apply_cut_off_anywhere_is_finished(seed in any::<u64>(), together in 1usize..3) {
        cut_off_everywhere(seed, together, 0);
    }

    #[test]
    fn a_power_failure_at_any_time_is_made_good(
        seed in any::<u64>(), together in 1usize..3, lose in 1usize..6,
    ) {
        cut_off_everywhere(seed, together, lose);
    }
}
