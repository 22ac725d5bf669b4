//! Random operations, on the backing directory and on a plain one.

use super::replica::{nothing, plain_tree};
use super::rig::Rig;
use crate::backing::{HandleId, Local, SetAttr, WriteHow};
use crate::model::FileId;
use proptest::prelude::*;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Debug)]
enum Step {
    Make(String, u8),
    Mkdir(String),
    Symlink(String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, u32),
    Link(String, String),
    Write(String, u32, u16, u8),
    Cut(String, u32),
    Punch(String, u32, u32),
    Copy(String, String, u32, u32, u32),
    Mode(String, u32),
    Open(String),
    WriteOpen(usize, u32, u8),
    Close(usize),
    Hold(String),
    Release(usize),
    Ship,
    Seal,
    Abandon,
    Walk,
    Remount,
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&NAMES[..]), 1..4).prop_map(|parts| parts.join("/"))
}

fn offset() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..100, 65_500u32..65_600, 0u32..200_000]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (path(), any::<u8>()).prop_map(|(p, b)| Step::Make(p, b)),
        6 => path().prop_map(Step::Mkdir),
        2 => path().prop_map(Step::Symlink),
        3 => path().prop_map(Step::Unlink),
        2 => path().prop_map(Step::Rmdir),
        6 => (path(), path(), prop::sample::select(&[0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE][..]))
            .prop_map(|(a, b, flags)| Step::Rename(a, b, flags)),
        4 => (path(), path()).prop_map(|(a, b)| Step::Link(a, b)),
        6 => (path(), offset(), 1u16..5000, any::<u8>()).prop_map(|(p, o, n, b)| Step::Write(p, o, n, b)),
        3 => (path(), offset()).prop_map(|(p, o)| Step::Cut(p, o)),
        2 => (path(), offset(), 1u32..100_000).prop_map(|(p, o, n)| Step::Punch(p, o, n)),
        2 => (path(), path(), offset(), offset(), 1u32..100_000)
            .prop_map(|(a, b, from, to, n)| Step::Copy(a, b, from, to, n)),
        2 => (path(), 0u32..0o1000).prop_map(|(p, m)| Step::Mode(p, 0o600 | m)),
        2 => path().prop_map(Step::Open),
        2 => (any::<usize>(), offset(), any::<u8>()).prop_map(|(n, o, b)| Step::WriteOpen(n, o, b)),
        1 => any::<usize>().prop_map(Step::Close),
        2 => path().prop_map(Step::Hold),
        1 => any::<usize>().prop_map(Step::Release),
        3 => Just(Step::Ship),
        3 => Just(Step::Seal),
        1 => Just(Step::Abandon),
        1 => Just(Step::Walk),
        1 => Just(Step::Remount),
    ]
}

/// Both directories, and what the kernel would hold of ours.
struct Both {
    rig: Option<Rig>,
    plain: tempfile::TempDir,
    open: Vec<(FileId, HandleId, std::fs::File)>,
    held: Vec<FileId>,
}

impl Both {
    fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("mounted")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.plain.path().join(path)
    }

    fn step(&self, step: &Step) -> (io::Result<()>, io::Result<()>) {
        use std::fs;
        use std::os::unix::fs::FileExt;
        let rig = self.rig();
        let backing = &rig.backing;
        match step {
            Step::Make(path, byte) => (
                rig.make(path, &[*byte; 100]).map(drop),
                fs::File::create_new(self.path(path))
                    .and_then(|f| f.write_all_at(&[*byte; 100], 0)),
            ),
            Step::Mkdir(path) => (rig.mkdir(path).map(drop), fs::create_dir(self.path(path))),
            Step::Symlink(path) => {
                let to = std::ffi::OsStr::new("nowhere");
                let made = rig.at(path, |p, n| backing.symlink(super::rig::ME, p, n, to));
                let made = made.map(|attr| rig.forget(attr.id));
                (made, std::os::unix::fs::symlink(to, self.path(path)))
            }
            Step::Unlink(path) => (rig.unlink(path), fs::remove_file(self.path(path))),
            Step::Rmdir(path) => (rig.rmdir(path), fs::remove_dir(self.path(path))),
            Step::Rename(from, to, flags) => {
                let flags_there = rustix::fs::RenameFlags::from_bits_retain(*flags);
                let (old, new) = (self.path(from), self.path(to));
                let cwd = rustix::fs::CWD;
                let plain = rustix::fs::renameat_with(cwd, old, cwd, new, flags_there);
                (rig.rename(from, to, *flags), plain.map_err(Into::into))
            }
            Step::Link(from, to) => (
                rig.link(from, to),
                fs::hard_link(self.path(from), self.path(to)),
            ),
            _ => self.data_step(step),
        }
    }

    fn data_step(&self, step: &Step) -> (io::Result<()>, io::Result<()>) {
        use std::fs;
        use std::os::unix::fs::{FileExt, PermissionsExt};
        let rig = self.rig();
        match step {
            Step::Write(path, offset, count, byte) if self.is_file(path) => {
                let data = vec![*byte; usize::from(*count)];
                (
                    rig.write(path, u64::from(*offset), &data).map(drop),
                    self.to_file(path)
                        .and_then(|f| f.write_all_at(&data, u64::from(*offset))),
                )
            }
            Step::Cut(path, size) if self.is_file(path) => {
                let set = SetAttr {
                    size: Some(u64::from(*size)),
                    ..SetAttr::default()
                };
                (
                    rig.set(path, set).map(drop),
                    self.to_file(path).and_then(|f| f.set_len(u64::from(*size))),
                )
            }
            Step::Mode(path, mode) if !self.path(path).is_symlink() => {
                let set = SetAttr {
                    mode: Some(*mode),
                    ..SetAttr::default()
                };
                let mode = fs::Permissions::from_mode(*mode);
                (
                    rig.set(path, set).map(drop),
                    fs::set_permissions(self.path(path), mode),
                )
            }
            _ => self.range_step(step),
        }
    }

    fn to_file(&self, path: &str) -> io::Result<std::fs::File> {
        std::fs::File::options()
            .write(true)
            .read(true)
            .open(self.path(path))
    }

    /// The kernel sends these for regular files only; nor does it follow links here.
    fn is_file(&self, path: &str) -> bool {
        self.path(path)
            .symlink_metadata()
            .is_ok_and(|m| m.is_file())
    }

    fn range_step(&self, step: &Step) -> (io::Result<()>, io::Result<()>) {
        let rig = self.rig();
        let backing = &rig.backing;
        match step {
            Step::Punch(path, offset, count) if self.is_file(path) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let (offset, count) = (u64::from(*offset), u64::from(*count));
                let plain = self.to_file(path).and_then(|file| {
                    let mode = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
                    Ok(rustix::fs::fallocate(file, mode, offset, count)?)
                });
                (
                    rig.on(path, |id| backing.fallocate(id, None, mode, offset, count)),
                    plain,
                )
            }
            Step::Copy(from, to, at, offset, count) if self.is_file(from) && self.is_file(to) => {
                let (mut at, mut offset) = (u64::from(*at), u64::from(*offset));
                let ours = rig.on(from, |a| {
                    rig.on(to, |b| {
                        backing.copy_file_range(
                            (a, None, at),
                            (b, None, offset),
                            u64::from(*count),
                            0,
                        )
                    })
                });
                let plain = self.to_file(from).and_then(|a| {
                    let b = self.to_file(to)?;
                    let count = *count as usize;
                    rustix::fs::copy_file_range(a, Some(&mut at), b, Some(&mut offset), count)?;
                    Ok(())
                });
                (ours.map(drop), plain)
            }
            _ => (Ok(()), Ok(())),
        }
    }

    fn rest(&mut self, step: &Step) {
        use std::os::unix::fs::FileExt;
        match step {
            Step::Open(path) => {
                let plain = self.path(path);
                if plain.symlink_metadata().is_ok_and(|m| m.is_file()) {
                    let file = std::fs::File::options()
                        .write(true)
                        .open(plain)
                        .expect("opened");
                    let id = self.rig().find(path).expect("found");
                    let handle = self
                        .rig()
                        .backing
                        .open_file(id, libc::O_WRONLY)
                        .expect("opened");
                    self.open.push((id, handle, file));
                }
            }
            Step::WriteOpen(number, offset, byte) if !self.open.is_empty() => {
                let (id, handle, file) = &self.open[number % self.open.len()];
                let (offset, data, how) = (u64::from(*offset), [*byte; 50], WriteHow::default());
                self.rig()
                    .backing
                    .write(*id, Some(*handle), offset, &data, how)
                    .expect("written");
                file.write_all_at(&data, offset).expect("written");
            }
            Step::Close(number) if !self.open.is_empty() => {
                let (id, handle, _) = self.open.swap_remove(number % self.open.len());
                self.rig().backing.release(handle);
                self.rig().forget(id);
            }
            Step::Hold(path) => self
                .held
                .extend(self.rig.as_ref().and_then(|r| r.find(path).ok())),
            Step::Release(number) if !self.held.is_empty() => {
                let id = self.held.swap_remove(number % self.held.len());
                self.rig().forget(id);
            }
            Step::Ship => {
                let _ = self.rig().finish() || self.rig().ship();
            }
            Step::Seal if self.rig().journal.sealed().is_none() => {
                self.rig().journal.seal(true);
            }
            Step::Abandon => self.rig().journal.abandon(),
            Step::Walk => self.rig().walk(),
            Step::Remount => {
                self.let_go();
                // What was not shipped is lost; the next walk finds it again.
                self.rig = self.rig.take().map(Rig::remount);
            }
            _ => {}
        }
    }

    fn let_go(&mut self) {
        for (id, handle, _) in std::mem::take(&mut self.open) {
            self.rig().backing.release(handle);
            self.rig().forget(id);
        }
        for id in std::mem::take(&mut self.held) {
            self.rig().forget(id);
        }
        self.rig().drop_cache();
        assert_eq!(
            self.rig().backing.counters().nodes,
            1,
            "every lookup was given back"
        );
        assert_eq!(self.rig().backing.counters().handles, 0);
    }
}

/// Does the steps to both directories, and compares what they answer.
fn run(rig: Rig, steps: &[Step]) -> Result<Both, TestCaseError> {
    let plain = tempfile::tempdir().expect("a directory");
    let mut both = Both {
        rig: Some(rig),
        plain,
        open: Vec::new(),
        held: Vec::new(),
    };
    for step in steps {
        let (ours, theirs) = both.step(step);
        let code = |result: &io::Result<()>| result.as_ref().err().map(|e| e.raw_os_error());
        prop_assert_eq!(code(&ours), code(&theirs), "{:?}", step);
        both.rest(step);
    }
    let same = plain_tree(both.plain.path(), &nothing);
    prop_assert_eq!(both.rig().real_tree(&nothing), same);
    Ok(both)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_mount_is_like_a_plain_directory_and_its_replica_like_both(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut both = run(Rig::new(), &steps)?;
        both.let_go();
        both.rig().walk();
        both.rig().assert_equal(&nothing);
    }

    #[test]
    fn what_is_excluded_is_all_that_is_missing(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let rig = Rig::with(&["d", "/a/b", "c/a"], Local::Os, true);
        rig.walk();
        let mut both = run(rig, &steps)?;
        if steps.iter().any(|step| matches!(step, Step::Remount)) {
            both.rig().walk();
        }
        // No walk over everything: what came over the border is enough.
        both.rig().walk_unwalked();
        both.rig().assert_equal(&|path| {
            path.iter().any(|part| part == "d") || path.starts_with("a/b") || path.starts_with("c/a")
        });
        both.let_go();
    }
}

/// Threads that work while epochs are sealed, read and committed, and while a first walk meets
/// what was there before; the replica must then hold exactly what is there.
fn all_at_once(patterns: &[&str], skip: &dyn Fn(&Path) -> bool) {
    let rig = Rig::with(patterns, Local::Os, false);
    for name in NAMES {
        let directory = rig.real.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        for number in 3..9 {
            std::fs::write(directory.join(number.to_string()), [7; 9000]).unwrap();
        }
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rig = &rig;
        let workers: Vec<_> = (0..3u64)
            .map(|seed| scope.spawn(move || work(rig, seed)))
            .collect();
        let walker = scope.spawn(|| {
            rig.walk();
            while !done.load(Ordering::Relaxed) {
                rig.walk_unwalked();
                std::thread::yield_now();
            }
        });
        let shipper = scope.spawn(|| {
            let mut shipped = 0;
            while !done.load(Ordering::Relaxed) {
                shipped += u32::from(rig.ship());
            }
            shipped
        });
        let worked: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        worked
            .into_iter()
            .for_each(|worked| worked.expect("no panic"));
        walker.join().expect("no panic");
        assert!(shipper.join().expect("no panic") > 0);
    });
    rig.walk_unwalked();
    rig.assert_equal(skip);
    assert_eq!(rig.backing.counters().nodes, 1);
}

#[test]
fn work_goes_on_while_epochs_are_shipped_and_a_walk_is_under_way() {
    all_at_once(&[], &nothing);
}

#[test]
fn the_border_is_crossed_while_epochs_are_shipped() {
    all_at_once(&["d"], &|path| path.iter().any(|part| part == "d"));
}

/// Files of all threads meet in the same directories; errors of lost races are part of the game.
fn work(rig: &Rig, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("small") % below
    };
    for _ in 0..700 {
        let mut path = || match random(3) {
            0 => format!("{}/{}/{}", NAMES[random(4)], random(3), random(3)),
            _ => format!("{}/{}", NAMES[random(4)], random(9)),
        };
        let (path, other) = (path(), path());
        let byte = u8::try_from(random(256)).expect("a byte");
        let result = match random(10) {
            0 => rig.make(&path, &[byte; 3000]).map(drop),
            1 => rig.unlink(&path).or_else(|_| rig.rmdir(&path)),
            2 | 3 => rig.rename(&path, &other, 0),
            4 => rig.link(&path, &other),
            5 => rig.rename(&path, &other, libc::RENAME_EXCHANGE),
            6 => {
                let size = Some(random(100_000) as u64);
                rig.set(
                    &path,
                    SetAttr {
                        size,
                        ..SetAttr::default()
                    },
                )
                .map(drop)
            }
            7 => rig.mkdir(&path).map(drop),
            _ => rig
                .write(&path, random(100_000) as u64, &[byte; 2000])
                .map(drop),
        };
        if let Err(error) = result {
            let code = error.raw_os_error();
            let expected = [
                libc::ENOENT,
                libc::EEXIST,
                libc::ESTALE,
                libc::EISDIR,
                libc::ENOTDIR,
                libc::ENOTEMPTY,
                libc::EINVAL,
                libc::EPERM,
            ];
            assert!(
                code.is_some_and(|code| expected.contains(&code)),
                "{path} {other}: {error}"
            );
        }
    }
}
