//! Whole sessions, over a pair of sockets.

use super::super::{ServeOptions, Stop, recover, serve};
use super::model::{compare, place};
use super::world::{Dice, World, bytes, name, object};
use crate::model::{
    Commit, Entry, EpochId, FileId, Fixed, Incarnation, SessionId, Timestamp, Uuid,
};
use crate::wire::{
    Decoder, Encoder, EntryDigest, Hello, PROTOCOL_VERSION, RecordItem, Refusal, ToPrimary,
    ToReplica, Welcome,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

type Served = JoinHandle<Result<(), super::super::ReplicaError>>;

/// A primary that says what it is told to.
pub struct Primary {
    pub send: Encoder<UnixStream>,
    pub receive: Decoder<UnixStream>,
    pub served: Served,
    digest: EntryDigest,
}

pub fn hello(session: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        program: "test".to_owned(),
        primary: Uuid([7; 16]),
        replica: None,
        incarnation: Incarnation(1),
        session: SessionId(session),
        adopt: false,
        fake_super: false,
    }
}

impl Primary {
    pub fn new(root: &Path) -> Primary {
        Primary::with(root, ServeOptions::default())
    }

    pub fn with(root: &Path, options: ServeOptions) -> Primary {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(Duration::from_secs(30)))
            .expect("set");
        let root: PathBuf = root.to_owned();
        let reader = theirs.try_clone().expect("a clone");
        let served = std::thread::spawn(move || serve(&root, options, reader, theirs));
        Primary {
            send: Encoder::new(ours.try_clone().expect("a clone")),
            receive: Decoder::new(ours),
            served,
            digest: EntryDigest::new(),
        }
    }

    pub fn say(&mut self, message: &ToReplica) {
        self.send.send(message, None).expect("sent");
        self.send.flush().expect("sent");
    }

    pub fn hear(&mut self) -> ToPrimary {
        self.receive
            .receive()
            .expect("a frame")
            .expect("a message")
            .0
    }

    /// What comes, but for what comes at any time.
    pub fn answer(&mut self) -> ToPrimary {
        loop {
            match self.hear() {
                ToPrimary::Staged { .. } | ToPrimary::Pong(_) => {}
                other => return other,
            }
        }
    }

    pub fn greet(root: &Path, hello: Hello) -> (Primary, Welcome) {
        let mut primary = Primary::new(root);
        primary.say(&ToReplica::Hello(hello));
        match primary.hear() {
            ToPrimary::Welcome(welcome) => (primary, welcome),
            other => panic!("{other:?}"),
        }
    }

    pub fn refused(root: &Path, hello: Hello) -> Refusal {
        let mut primary = Primary::new(root);
        primary.say(&ToReplica::Hello(hello));
        let answer = primary.answer();
        let served = primary.served.join().expect("no panic");
        match (answer, served) {
            (ToPrimary::Refused { reason, .. }, Err(_)) => reason,
            other => panic!("{other:?}"),
        }
    }

    pub fn stage(&mut self, sequence: u64, entry: &Entry, bytes: &[u8]) {
        self.digest.add(entry).expect("an entry");
        let message = ToReplica::Stage {
            sequence,
            entry: entry.clone(),
        };
        let bytes = (!bytes.is_empty()).then_some(bytes);
        self.send.send(&message, bytes).expect("sent");
        self.send.flush().expect("sent");
    }

    pub fn commit_of(&mut self, epoch: u64, entries: usize) -> Commit {
        let digest = std::mem::take(&mut self.digest).digest();
        Commit {
            epoch: EpochId(epoch),
            parent: EpochId(epoch - 1),
            incarnation: Incarnation(1),
            sealed_at: Timestamp::default(),
            consistent: true,
            entries: entries as u64,
            digest,
        }
    }

    /// Ships an epoch and waits until it is applied.
    pub fn ship(&mut self, epoch: u64, entries: &[(Entry, Vec<u8>)]) {
        for (sequence, (entry, bytes)) in entries.iter().enumerate() {
            self.stage(sequence as u64, entry, bytes);
        }
        let commit = self.commit_of(epoch, entries.len());
        self.say(&ToReplica::Commit(commit));
        assert_eq!(self.answer(), ToPrimary::Received(EpochId(epoch)));
        assert_eq!(self.answer(), ToPrimary::Durable(EpochId(epoch)));
        let applied = self.answer();
        assert!(
            matches!(applied, ToPrimary::Applied { epoch: at, .. } if at == EpochId(epoch)),
            "{applied:?}"
        );
    }

    pub fn goodbye(mut self) {
        self.say(&ToReplica::Goodbye);
        // Until the end, signs of life may come.
        while let Some((message, _)) = self.receive.receive().expect("an end") {
            assert!(matches!(message, ToPrimary::Pong(_)), "{message:?}");
        }
        self.served.join().expect("no panic").expect("served");
    }

    /// The link is cut.
    pub fn cut(self) {
        let Primary {
            send,
            receive,
            served,
            ..
        } = self;
        drop((send, receive));
        served.join().expect("no panic").expect("served");
    }

    pub fn records(&mut self) -> Vec<RecordItem> {
        self.say(&ToReplica::FetchRecords);
        let mut items = Vec::new();
        loop {
            match self.answer() {
                ToPrimary::Records(more) => items.extend(more),
                ToPrimary::RecordsEnd { .. } => return items,
                other => panic!("{other:?}"),
            }
        }
    }
}

pub fn a_world(seed: u64) -> World {
    let mut dice = Dice(seed);
    let mut world = World::new();
    for _ in 0..20 {
        world.change(&mut dice);
    }
    world
}

/// Entries of a world, as a first sync has them.
pub fn first(world: &World) -> Vec<(Entry, Vec<u8>)> {
    let mut before = World::new();
    before
        .things
        .get_mut(&FileId::ROOT)
        .expect("root")
        .object
        .attributes
        .uid = 7;
    world.epoch(&before, &mut Dice(3))
}

/// An epoch with nothing but a file of this content.
pub fn a_file(id: u64, named: &str, content: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut object = object(Fixed::File, &mut Dice(id));
    object.size = content.len() as u64;
    let binding = Entry::Binding {
        parent: FileId::ROOT,
        name: name(named),
        object: Some(FileId(id)),
    };
    let object = Entry::Object {
        id: FileId(id),
        object,
    };
    let mut entries = vec![(binding, Vec::new()), (object, Vec::new())];
    for (index, piece) in content.chunks(256 * 1024).enumerate() {
        entries.push(bytes(FileId(id), index * 256 * 1024, piece, None));
    }
    entries
}

#[test]
fn epochs_are_durable_then_applied_and_known_again() {
    let place = place();
    let root = place.path().join("target");
    let world = a_world(11);
    let (mut primary, welcome) = Primary::greet(&root, hello(1));
    assert!(welcome.fresh && welcome.durable == EpochId(0) && welcome.staged == 0);
    primary.ship(1, &first(&world));
    primary.say(&ToReplica::Ping(9));
    assert_eq!(primary.hear(), ToPrimary::Pong(9));
    primary.goodbye();
    compare(&root, &world);

    let known = Hello {
        replica: Some(welcome.replica),
        ..hello(2)
    };
    let (mut primary, again) = Primary::greet(&root, known);
    assert!(!again.fresh && again.durable == EpochId(1) && again.applied == EpochId(1));
    assert_eq!(again.replica, welcome.replica);
    primary.say(&ToReplica::Apply);
    assert!(matches!(
        primary.answer(),
        ToPrimary::Applied {
            epoch: EpochId(1),
            ..
        }
    ));
    let names = primary.records();
    let names = names
        .iter()
        .filter(|item| matches!(item, RecordItem::Binding { .. }));
    assert_eq!(names.count(), world.names.len());
    primary.goodbye();
    assert_eq!(recover(&root).expect("nothing to do").epoch, EpochId(1));
}

#[test]
fn whoever_may_not_is_refused() {
    let place = place();
    let root = place.path().join("target");
    let (primary, welcome) = Primary::greet(&root, hello(5));
    primary.goodbye();
    assert_eq!(Primary::refused(&root, hello(4)), Refusal::Fenced);
    let older = Hello {
        incarnation: Incarnation(0),
        ..hello(9)
    };
    assert_eq!(Primary::refused(&root, older), Refusal::Fenced);
    let mut other = Hello {
        primary: Uuid([8; 16]),
        ..hello(9)
    };
    assert_eq!(Primary::refused(&root, other.clone()), Refusal::Foreign);
    let mistaken = Hello {
        replica: Some(Uuid([9; 16])),
        ..hello(9)
    };
    assert_eq!(Primary::refused(&root, mistaken), Refusal::Foreign);
    let future = Hello {
        version: 0,
        ..hello(9)
    };
    assert_eq!(Primary::refused(&root, future), Refusal::Version);
    other.adopt = true;
    let (primary, adopted) = Primary::greet(&root, other);
    assert!(adopted.fresh && adopted.replica == welcome.replica);
    primary.goodbye();
    assert_eq!(Primary::refused(&root, hello(10)), Refusal::Foreign);

    let file = place.path().join("file");
    std::fs::write(&file, "x").expect("made");
    assert_eq!(Primary::refused(&file, hello(1)), Refusal::Unusable);
    let full = place.path().join("full");
    std::fs::create_dir(&full).expect("made");
    std::fs::write(full.join("x"), "x").expect("made");
    assert_eq!(Primary::refused(&full, hello(1)), Refusal::NotEmpty);
    assert!(!full.join(".mirrorfs").exists());
    assert!(recover(&full).is_err());
}

#[test]
fn a_directory_is_adopted_with_what_it_has() {
    let place = place();
    let root = place.path().join("target");
    std::fs::create_dir_all(root.join("d/e")).expect("made");
    std::fs::write(root.join("d/e/f"), vec![5; 200_000]).expect("made");
    std::fs::hard_link(root.join("d/e/f"), root.join("g")).expect("made");
    std::os::unix::fs::symlink("/etc", root.join("d/link")).expect("made");
    let adopt = Hello {
        adopt: true,
        ..hello(1)
    };
    let (mut primary, welcome) = Primary::greet(&root, adopt);
    assert!(welcome.fresh);
    let items = primary.records();
    let count = |wanted: fn(&RecordItem) -> bool| items.iter().filter(|item| wanted(item)).count();
    // The root, d, e, f and the link; five names; one file with content.
    assert_eq!(count(|item| matches!(item, RecordItem::Object { .. })), 5);
    assert_eq!(count(|item| matches!(item, RecordItem::Binding { .. })), 5);
    let hashes = items.iter().find_map(|item| match item {
        RecordItem::Blocks { hashes, .. } => Some(hashes.clone()),
        _ => None,
    });
    assert_eq!(hashes.expect("hashes").len(), 4);
    let unbind = Entry::Binding {
        parent: FileId::ROOT,
        name: name("d"),
        object: None,
    };
    primary.ship(1, &[(unbind, Vec::new())]);
    primary.goodbye();
    assert!(!root.join("d").exists() && root.join("g").exists());
}

#[test]
fn what_was_staged_is_kept_for_the_next_session() {
    let place = place();
    let root = place.path();
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at / 991) as u8).collect();
    let entries = a_file(2, "big", &content);
    let (mut primary, _) = Primary::greet(root, hello(1));
    for (sequence, (entry, bytes)) in entries.iter().enumerate() {
        primary.stage(sequence as u64, entry, bytes);
    }
    while primary.hear()
        != (ToPrimary::Staged {
            entries: entries.len() as u64,
        })
    {}
    primary.cut();
    let (mut primary, welcome) = Primary::greet(root, hello(2));
    assert_eq!(
        (welcome.staged, welcome.staged_by),
        (entries.len() as u64, SessionId(1))
    );
    // All but the last two, of which one is sent again.
    let keep = entries.len() - 2;
    primary.say(&ToReplica::Truncate { keep: keep as u64 });
    assert_eq!(
        primary.hear(),
        ToPrimary::Staged {
            entries: keep as u64
        }
    );
    for (entry, _) in &entries[..keep] {
        primary.digest.add(entry).expect("an entry");
    }
    for (sequence, (entry, bytes)) in entries.iter().enumerate().skip(keep) {
        primary.stage(sequence as u64, entry, bytes);
    }
    primary.cut();
    let (mut primary, welcome) = Primary::greet(root, hello(3));
    assert_eq!(
        (welcome.staged, welcome.staged_by),
        (entries.len() as u64, SessionId(2))
    );
    for (entry, _) in &entries {
        primary.digest.add(entry).expect("an entry");
    }
    let commit = primary.commit_of(1, entries.len());
    primary.say(&ToReplica::Commit(commit));
    assert_eq!(primary.answer(), ToPrimary::Received(EpochId(1)));
    assert_eq!(primary.answer(), ToPrimary::Durable(EpochId(1)));
    // The link dies: what is durable is applied all the same.
    primary.cut();
    assert!(std::fs::read(root.join("big")).expect("there") == content);
    let left = std::fs::read_dir(root.join(".mirrorfs/redo"))
        .expect("list")
        .count();
    assert_eq!(left, 0);
}

#[test]
fn a_newer_session_of_this_process_fences_an_older_one() {
    let place = place();
    let (old, _) = Primary::greet(place.path(), hello(1));
    let (new, _) = Primary::greet(place.path(), hello(2));
    assert!(old.served.join().expect("no panic").is_ok());
    new.goodbye();
}

#[test]
fn a_session_that_is_told_to_stop_lets_go() {
    let place = place();
    let stop = Stop::default();
    let options = ServeOptions {
        stop: stop.clone(),
        ..ServeOptions::default()
    };
    let mut primary = Primary::with(place.path(), options);
    primary.say(&ToReplica::Hello(hello(1)));
    assert!(matches!(primary.hear(), ToPrimary::Welcome(_)));
    stop.request();
    primary.served.join().expect("no panic").expect("stopped");
    assert!(recover(place.path()).is_ok());
}

/// Not a test of its own: the process that the next one takes a replica from.
#[test]
fn holder() {
    let Some(root) = std::env::var_os("MIRRORFS_TEST_HOLDER") else {
        return;
    };
    let (primary, _) = Primary::greet(Path::new(&root), hello(1));
    std::fs::write(Path::new(&root).with_extension("ready"), "x").expect("said");
    let _ = primary.served.join();
}

#[test]
fn a_newer_session_takes_a_replica_from_another_process() {
    use std::process::{Command, Stdio};
    let place = place();
    let root = place.path().join("target");
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "replica::tests::session::holder", "--nocapture"])
        .env("MIRRORFS_TEST_HOLDER", &root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !root.with_extension("ready").exists() {
        assert!(
            std::time::Instant::now() < deadline,
            "the holder does not start"
        );
        std::thread::yield_now();
    }
    assert_eq!(
        Primary::refused(
            &root,
            Hello {
                primary: Uuid([8; 16]),
                ..hello(2)
            }
        ),
        Refusal::Busy
    );
    let (primary, _) = Primary::greet(&root, hello(2));
    primary.goodbye();
    assert!(!child.wait().expect("ended").success());
}

/// A file system of so many bytes; `None` where it may not be mounted.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Option<Small> {
        use rustix::mount::MountFlags;
        std::fs::create_dir(&at).expect("made");
        let options = std::ffi::CString::new(format!("size={size}")).expect("no zero");
        rustix::mount::mount("tmpfs", &at, "tmpfs", MountFlags::empty(), &*options).ok()?;
        Some(Small(at))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_loses_nothing() {
    let place = place();
    let Some(small) = Small::mount(place.path().join("small"), "32m") else {
        return;
    };
    let root = small.0.join("target");
    let ballast = small.0.join("ballast");
    std::fs::write(&ballast, vec![1; 12 << 20]).expect("room");
    let (mut primary, _) = Primary::greet(&root, hello(1));
    // More than there is room for: the stage is let go of, and what comes late is not minded.
    let big = a_file(2, "big", &vec![7; 40 << 20]);
    for (sequence, (entry, bytes)) in big.iter().enumerate() {
        primary.stage(sequence as u64, entry, bytes);
    }
    let stalled = primary.answer();
    assert!(matches!(stalled, ToPrimary::Stalled { .. }), "{stalled:?}");
    primary.digest = EntryDigest::new();
    primary.ship(1, &a_file(3, "small", &[1; 1000]));
    // Enough for the log, not for the tree as well: it must not become durable.
    let mut entries = Vec::new();
    for id in 10..22 {
        entries.extend(a_file(id, &format!("f{id}"), &vec![id as u8; 1 << 20]));
    }
    for (sequence, (entry, bytes)) in entries.iter().enumerate() {
        primary.stage(sequence as u64, entry, bytes);
    }
    let stalled = primary.answer();
    assert!(matches!(stalled, ToPrimary::Stalled { .. }), "{stalled:?}");
    // What makes room needs none.
    std::fs::remove_file(&ballast).expect("removed");
    primary.digest = EntryDigest::new();
    for (sequence, (entry, bytes)) in entries.iter().enumerate() {
        primary.stage(sequence as u64, entry, bytes);
    }
    let commit = primary.commit_of(2, entries.len());
    primary.say(&ToReplica::Commit(commit));
    let mut answers = std::iter::repeat_with(|| primary.answer())
        .filter(|answer| !matches!(answer, ToPrimary::Staged { .. }));
    assert_eq!(answers.next(), Some(ToPrimary::Received(EpochId(2))));
    assert_eq!(answers.next(), Some(ToPrimary::Durable(EpochId(2))));
    drop(answers);
    primary.say(&ToReplica::Apply);
    let applied = primary.answer();
    assert!(
        matches!(
            applied,
            ToPrimary::Applied {
                epoch: EpochId(2),
                ..
            }
        ),
        "{applied:?}"
    );
    primary.goodbye();
    for id in 10..22 {
        let content = std::fs::read(root.join(format!("f{id}"))).expect("there");
        assert!(content == vec![id as u8; 1 << 20]);
    }
    assert!(root.join("small").exists() && !root.join("big").exists());
}

#[test]
fn an_unprivileged_replica_keeps_to_itself_what_it_may_not_apply() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let place = place();
    let root = place.path().join("target");
    let fake = Hello {
        fake_super: true,
        ..hello(1)
    };
    let (mut primary, welcome) = Primary::greet(&root, fake);
    assert!(!welcome.privileged);
    let mut entries = a_file(2, "f", b"content");
    let mut kinds = vec![
        (Fixed::BlockDevice(0x801), "device"),
        (Fixed::Directory, "d"),
    ];
    kinds.extend([(Fixed::Fifo, "pipe"), (Fixed::Socket, "socket")]);
    for (id, (fixed, named)) in (3..).zip(kinds) {
        let mut object = object(fixed, &mut Dice(id));
        object.attributes.mode = 0o4444;
        object.attributes.uid = 1234;
        let (id, binding) = (FileId(id), name(named));
        let entry = Entry::Binding {
            parent: FileId::ROOT,
            name: binding,
            object: Some(id),
        };
        entries.extend([
            (entry, Vec::new()),
            (Entry::Object { id, object }, Vec::new()),
        ]);
    }
    primary.ship(1, &entries);
    let items = primary.records();
    primary.goodbye();
    let us = rustix::process::geteuid().as_raw();
    for (named, mode) in [
        ("f", 0o100600),
        ("d", 0o040700),
        ("device", 0o100600),
        ("socket", 0o100600),
    ] {
        let found = root.join(named).symlink_metadata().expect("there");
        assert_eq!(
            (found.permissions().mode() & !0o100, found.uid()),
            (mode & !0o100, us),
            "{named}"
        );
    }
    let kept = items.iter().any(|item| {
        matches!(item, RecordItem::Object { object, .. }
            if object.fixed == Fixed::BlockDevice(0x801) && object.attributes.uid == 1234)
    });
    assert!(kept);
}
