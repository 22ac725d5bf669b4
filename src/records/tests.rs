//! What records hold, refuse and survive.

mod tree;

use super::*;
use crate::limits::BLOCK_BYTES;
use crate::model::{
    Attributes, Body, Commit, Entry, Extent, Fixed, Fragment, Incarnation, Timestamp, Xattrs,
    hash_block,
};
use std::sync::atomic::Ordering;

fn object(fixed: Fixed, mode: u32, size: u64) -> Object {
    let attributes = Attributes {
        mode,
        ..Attributes::default()
    };
    Object {
        fixed,
        attributes,
        size,
        xattrs: Xattrs::new(),
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn commit(epoch: u64) -> Commit {
    Commit {
        epoch: EpochId(epoch),
        parent: EpochId(epoch - 1),
        incarnation: Incarnation(1),
        sealed_at: Timestamp::default(),
        consistent: true,
        entries: 0,
        digest: [u8::try_from(epoch % 251).expect("small"); 32],
    }
}

fn is(id: u64, object: Object) -> Entry {
    Entry::Object {
        id: FileId(id),
        object,
    }
}

fn bind(parent: u64, text: &str, id: u64) -> Entry {
    let object = (id != 0).then_some(FileId(id));
    Entry::Binding {
        parent: FileId(parent),
        name: name(text),
        object,
    }
}

fn blocks(id: u64, first: u64, hashes: &[BlockHash]) -> Entry {
    let extent = Extent::new(first * BLOCK_BYTES, hashes.len() as u64 * BLOCK_BYTES);
    let body = Body::Bytes;
    Entry::Fragment(Fragment {
        file: FileId(id),
        extent,
        body,
        blocks: hashes.to_vec(),
    })
}

fn hole(id: u64, first: u64, count: u64) -> Entry {
    let extent = Extent::new(first * BLOCK_BYTES, count * BLOCK_BYTES);
    Entry::Fragment(Fragment {
        file: FileId(id),
        extent,
        body: Body::Hole,
        blocks: vec![],
    })
}

fn apply(records: &Records, epoch: u64, entries: &[Entry]) -> Result<Applied> {
    let mut change = records.begin()?;
    for entry in entries {
        change.entry(entry)?;
    }
    change.commit(&commit(epoch), Durability::None)
}

fn place() -> (tempfile::TempDir, std::path::PathBuf) {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("records.redb");
    (place, path)
}

const DIRECTORY: Fixed = Fixed::Directory;
const FILE: Fixed = Fixed::File;

#[test]
fn a_contradiction_changes_nothing() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let d = |id| is(id, object(DIRECTORY, 0o700, 0));
    let f = |id| is(id, object(FILE, 0o600, 0));
    let start = [
        d(2),
        d(3),
        f(4),
        bind(1, "a", 2),
        bind(2, "b", 3),
        bind(3, "f", 4),
    ];
    apply(&records, 1, &start).expect("applied");
    let before = records.state().expect("state");
    let bad: [&[Entry]; 12] = [
        &[bind(1, "x", 9)],                                    // names nothing
        &[f(9), bind(8, "x", 9)],                              // below nothing
        &[bind(8, "x", 4)],                                    // the same, of something known
        &[f(9), bind(4, "x", 9), bind(1, "y", 9)],             // below a file
        &[f(9), bind(4, "x", 9), bind(3, "f", 0)],             // below a file that is gone
        &[bind(1, "again", 2)],                                // a directory with two names
        &[bind(1, "a", 0), bind(3, "loop", 2)],                // a directory below itself
        &[bind(2, "b", 0), bind(3, "me", 3)],                  // the same, alone
        &[blocks(2, 0, &[hash_block(b"x")])],                  // a directory with content
        &[is(4, object(Fixed::Fifo, 0o600, 0))],               // another kind
        &[blocks(9, 0, &[hash_block(b"x")]), bind(1, "x", 9)], // content of nothing, named
        &[is(1, object(FILE, 0o600, 0))],                      // the root
    ];
    for entries in bad {
        let error = apply(&records, 2, entries).expect_err("refused");
        assert!(
            matches!(error, Error::Inconsistent { .. }),
            "{entries:?}: {error}"
        );
        assert_eq!(records.state().expect("state"), before);
    }
    let late = apply(&records, 3, &[]).expect_err("refused");
    assert!(
        matches!(
            late,
            Error::Order {
                has: EpochId(1),
                ..
            }
        ),
        "{late}"
    );
    assert!(matches!(apply(&records, 1, &[]), Err(Error::Order { .. })));
    apply(&records, 2, &[bind(1, "x", 4)]).expect("applied");
}

#[test]
fn what_comes_and_goes_within_an_epoch_was_never_there() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let some = [hash_block(b"x")];
    let start = [
        is(2, object(FILE, 0o600, BLOCK_BYTES)),
        bind(1, "f", 2),
        blocks(2, 0, &some),
    ];
    apply(&records, 1, &start).expect("applied");
    let before = records.state().expect("state");
    let staged = [
        blocks(7, 0, &some), // staged before its object, and then deleted
        is(8, object(DIRECTORY, 0o700, 0)),
        is(9, object(FILE, 0o600, 9)),
        bind(8, "f", 9), // went with its directory
    ];
    let applied = apply(&records, 2, &staged).expect("applied");
    assert_eq!(applied.gone, []);
    assert_eq!(applied.state.root_hash, before.root_hash);
    assert_eq!(
        (applied.state.objects, applied.state.highest_id),
        (2, FileId(9))
    );
    // Staged for a file that is then deleted.
    let applied = apply(&records, 3, &[blocks(2, 1, &some), bind(1, "f", 0)]).expect("applied");
    assert_eq!(applied.gone, [FileId(2)]);
    assert_eq!(
        records.blocks(FileId(2), 0, 2).expect("read"),
        [BlockHash::ZERO; 2]
    );
}

#[test]
fn a_hard_link_outlives_the_directory() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let start = [
        is(2, object(DIRECTORY, 0o700, 0)),
        is(3, object(FILE, 0o600, 5)),
        is(4, object(FILE, 0o600, 7)),
        bind(1, "d", 2),
        bind(2, "f", 3),
        bind(1, "g", 3),
        bind(2, "h", 4),
    ];
    apply(&records, 1, &start).expect("applied");
    let applied = apply(&records, 2, &[bind(1, "d", 0)]).expect("applied");
    assert_eq!(applied.gone, [FileId(2), FileId(4)]);
    assert_eq!(
        (
            applied.state.objects,
            applied.state.names,
            applied.state.bytes
        ),
        (2, 1, 5)
    );
    assert_eq!(
        records.links(FileId(3), 9).expect("read"),
        [(FileId::ROOT, name("g"))]
    );
}

#[test]
fn stamps_and_hints() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let at = |inode| Stamp {
        inode,
        ..Stamp::default()
    };
    let mut change = records.begin().expect("begun");
    change.stamp(FileId(2), at(20)).expect("stamped");
    change.stamp(FileId(5), at(50)).expect("stamped");
    for entry in [is(2, object(FILE, 0o600, 0)), bind(1, "f", 2)] {
        change.entry(&entry).expect("taken");
    }
    change
        .commit(&commit(1), Durability::Immediate)
        .expect("committed");
    assert_eq!(records.by_inode(20).expect("read"), Some(FileId(2)));
    assert_eq!(records.by_inode(50).expect("read"), None, "it has no name");
    let hash = records.state().expect("state").root_hash;
    records
        .set_stamps(&[(FileId(2), at(21)), (FileId(9), at(22))])
        .expect("set");
    assert_eq!(records.by_inode(20).expect("read"), None);
    assert_eq!(records.by_inode(21).expect("read"), Some(FileId(2)));
    assert_eq!(
        records
            .object(FileId(2))
            .expect("read")
            .expect("there")
            .stamp,
        at(21)
    );
    assert_eq!(
        records.state().expect("state").root_hash,
        hash,
        "a stamp is this side's own"
    );
    apply(&records, 2, &[bind(1, "f", 0)]).expect("applied");
    assert_eq!(records.by_inode(21).expect("read"), None);
}

#[test]
fn an_import_replaces_everything() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    apply(
        &records,
        1,
        &[is(9, object(FILE, 0o600, 5)), bind(1, "f", 9)],
    )
    .expect("applied");
    let mut change = records.replace().expect("begun");
    let item = RecordItem::Object {
        id: FileId(3),
        object: object(FILE, 0o600, 0),
    };
    change.item(&item).expect("taken");
    let item = RecordItem::Binding {
        parent: FileId(1),
        name: name("g"),
        object: FileId(3),
    };
    change.item(&item).expect("taken");
    let state = change
        .commit(&commit(40), Durability::Immediate)
        .expect("committed")
        .state;
    assert_eq!(
        (state.objects, state.names, state.bytes, state.epoch),
        (2, 1, 0, EpochId(40))
    );
    assert_eq!(state.highest_id, FileId(9), "an id is never used again");
    assert_eq!(records.object(FileId(9)).expect("read"), None);
}

#[test]
fn damage_is_told_apart() {
    let (_place, path) = place();
    assert!(matches!(Records::open(&path), Err(Error::Missing { .. })));
    std::fs::write(&path, "").expect("written");
    assert!(matches!(Records::open(&path), Err(Error::Damaged { .. })));
    std::fs::write(&path, "something else, and long enough to be read").expect("written");
    assert!(matches!(Records::open(&path), Err(Error::Damaged { .. })));
    let records = Records::create(&path).expect("created");
    assert!(matches!(Records::open(&path), Err(Error::InUse { .. })));
    drop(records);
    let database = redb::Database::open(&path).expect("opened");
    let write = database.begin_write().expect("begun");
    let mut meta = write.open_table(row::META).expect("opened");
    meta.insert(row::META_FORMAT, &9u32.to_le_bytes()[..])
        .expect("written");
    drop(meta);
    write.commit().expect("committed");
    drop(database);
    let error = Records::open(&path).expect_err("refused");
    assert!(
        matches!(&error, Error::Version { found, .. } if found == "9"),
        "{error}"
    );
}

#[test]
fn flipped_bytes_are_found_or_change_nothing() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let entries: Vec<Entry> = (2..400)
        .flat_map(|id| {
            [
                is(id, object(FILE, 0o600, id)),
                bind(1, &format!("n{id}"), id),
            ]
        })
        .collect();
    let state = apply(&records, 1, &entries).expect("applied").state;
    drop(records);
    let good = std::fs::read(&path).expect("read");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcomes: Vec<Result<State>> = (0..40)
        .map(|turn| {
            let mut bad = good.clone();
            let at = if turn < 16 {
                turn * 20
            } else {
                turn * bad.len() / 40
            };
            bad[at] ^= 0x55;
            std::fs::write(&path, &bad).expect("written");
            Records::open(&path).and_then(|records| {
                for id in 2..400 {
                    let record = records.object(FileId(id))?;
                    assert_eq!(record.map(|record| record.object.size), Some(id));
                }
                records.state()
            })
        })
        .collect();
    std::panic::set_hook(hook);
    for outcome in outcomes {
        match outcome {
            Ok(found) => assert_eq!(found, state),
            Err(error) => assert!(
                matches!(error, Error::Damaged { .. } | Error::Version { .. }),
                "{error:?}"
            ),
        }
    }
}

#[test]
fn a_full_disk_fails_the_call_and_not_the_process() {
    let (_place, path) = place();
    let switch = store::faulty::switch(&path);
    let records = Records::create(&path).expect("created");
    let file = |id| {
        [
            is(id, object(FILE, 0o600, 0)),
            bind(1, &format!("f{id}"), id),
        ]
    };
    let mut change = records.begin().expect("begun");
    file(2)
        .iter()
        .for_each(|entry| change.entry(entry).expect("taken"));
    change
        .commit(&commit(1), Durability::Immediate)
        .expect("committed");
    for _ in 0..2 {
        let mut change = records.begin().expect("begun");
        file(3)
            .iter()
            .for_each(|entry| change.entry(entry).expect("taken"));
        switch.store(true, Ordering::Relaxed);
        let error = change
            .commit(&commit(2), Durability::Immediate)
            .expect_err("the disk is full");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        assert!(records.begin().is_err(), "still full");
        switch.store(false, Ordering::Relaxed);
        assert_eq!(records.state().expect("state").epoch, EpochId(1));
        assert_eq!(
            records.child(FileId(1), &name("f2")).expect("read"),
            Some(FileId(2))
        );
    }
    let applied = apply(&records, 2, &file(3)).expect("applied");
    assert_eq!(applied.state.objects, 3);
    // What was only committed, not made durable, may be lost; that is not passed over.
    switch.store(true, Ordering::Relaxed);
    assert!(records.sync().is_err());
    switch.store(false, Ordering::Relaxed);
    let f3 = || records.child(FileId(1), &name("f3"));
    let fell_back = f3();
    assert!(matches!(
        fell_back,
        Err(Error::FellBack {
            had: EpochId(2),
            has: EpochId(1),
            ..
        })
    ));
    assert_eq!(records.state().expect("state").epoch, EpochId(1));
    apply(&records, 2, &file(3)).expect("applied again");
    assert_eq!(f3().expect("read"), Some(FileId(3)));
}

#[test]
fn a_sync_makes_earlier_commits_durable() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let crashed = path.with_file_name("crashed.redb");
    let survives = || {
        std::fs::copy(&path, &crashed).expect("copied");
        Records::open(&crashed)
            .expect("opened")
            .state()
            .expect("state")
            .epoch
    };
    let stamp = Stamp {
        inode: 7,
        ..Stamp::default()
    };
    apply(
        &records,
        1,
        &[is(2, object(FILE, 0o600, 0)), bind(1, "f", 2)],
    )
    .expect("applied");
    records.set_stamps(&[(FileId(2), stamp)]).expect("stamped");
    assert_eq!(survives(), EpochId(0));
    assert_eq!(records.sync().expect("synced"), EpochId(1));
    assert_eq!(survives(), EpochId(1));
}

#[test]
fn a_second_writer_waits() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    let change = records.begin().expect("begun");
    let other = records.clone();
    let writer = std::thread::spawn(move || apply(&other, 2, &[]));
    change
        .commit(&commit(1), Durability::None)
        .expect("committed");
    writer.join().expect("no panic").expect("applied");
}

#[test]
fn an_import_of_any_size_is_checked_as_a_whole() {
    let (_place, path) = place();
    let records = Records::create(&path).expect("created");
    for broken in [true, false] {
        let mut change = records.begin().expect("begun");
        change.touch_all();
        let last = if broken {
            bind(77, "x", 3)
        } else {
            bind(1, "x", 3)
        };
        let entries = [
            is(2, object(DIRECTORY, 0o700, 0)),
            is(3, object(FILE, 0o600, 0)),
            bind(1, "d", 2),
        ];
        entries
            .iter()
            .chain([&last])
            .for_each(|entry| change.entry(entry).expect("taken"));
        let answer = change.commit(&commit(1), Durability::None);
        assert_eq!(answer.is_err(), broken);
    }
    assert_eq!(records.state().expect("state").objects, 3);
}
