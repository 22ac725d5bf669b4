//! Records against a plain tree in memory, and what they refuse.

use super::*;
use crate::limits::BLOCK_BYTES;
use crate::model::{
    Attributes, Body, Commit, Entry, Extent, Fixed, Fragment, Incarnation, Timestamp, Xattrs,
    hash_block,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
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

/// A plain tree, to compare with.
#[derive(Clone, Default)]
struct Tree {
    objects: BTreeMap<u64, Object>,
    names: BTreeMap<(u64, Name), u64>,
    blocks: BTreeMap<(u64, u64), BlockHash>,
    next: u64,
}

impl Tree {
    fn pick(&self, number: u16, wanted: impl Fn(&Object) -> bool) -> Option<u64> {
        let found: Vec<u64> = self
            .objects
            .iter()
            .filter(|(_, o)| wanted(o))
            .map(|(id, _)| *id)
            .collect();
        found.get(usize::from(number) % found.len().max(1)).copied()
    }

    fn is_below(&self, id: u64, above: u64) -> bool {
        id == above
            || self
                .names
                .iter()
                .filter(|(_, held)| **held == id)
                .any(|((parent, _), _)| self.is_below(*parent, above))
    }

    fn forget_nameless(&mut self) {
        loop {
            let named: BTreeSet<u64> = self.names.values().copied().collect();
            let before = (self.objects.len(), self.names.len());
            self.objects.retain(|id, _| *id == 1 || named.contains(id));
            self.names
                .retain(|(parent, _), _| self.objects.contains_key(parent));
            if before == (self.objects.len(), self.names.len()) {
                break;
            }
        }
        self.blocks
            .retain(|(id, _), _| self.objects.contains_key(id));
    }
}

/// A step: what is done, to what, with what.
type Op = (u8, u16, u16, u8);

/// Does it to the tree, and says what an epoch has to hold for it.
fn step(
    tree: &mut Tree,
    (kind, a, b, c): Op,
    entries: &mut Vec<Entry>,
    touched: &mut BTreeSet<u64>,
    names: &mut BTreeSet<(u64, Name)>,
) {
    let Some(parent) = tree.pick(a, |o| o.fixed.is_directory()) else {
        return;
    };
    let key = (parent, name(&format!("n{}", b % 7)));
    match kind % 8 {
        kind @ (0 | 1) => {
            let fixed = if kind == 0 { FILE } else { DIRECTORY };
            tree.next += 1;
            tree.objects.insert(tree.next, object(fixed, 0o600, 0));
            tree.names.insert(key.clone(), tree.next);
            touched.insert(tree.next);
            names.insert(key);
        }
        2 => {
            tree.names.remove(&key);
            names.insert(key);
        }
        3 => {
            let Some(file) = tree.pick(b, |o| o.fixed.is_file()) else {
                return;
            };
            tree.names.insert(key.clone(), file);
            names.insert(key);
        }
        4 => {
            let from = tree
                .names
                .iter()
                .nth(usize::from(b) % tree.names.len().max(1));
            let Some((from, id)) = from.map(|(from, id)| (from.clone(), *id)) else {
                return;
            };
            if !tree.is_below(parent, id) {
                tree.names.remove(&from);
                tree.names.insert(key.clone(), id);
                names.extend([from, key]);
            }
        }
        5 | 6 => {
            let Some(id) = tree.pick(a, |o| o.fixed.is_file()) else {
                return;
            };
            let first = u64::from(b % 9);
            let hash = hash_block(&[c % 4]);
            tree.blocks.insert((id, first), hash);
            entries.push(blocks(id, first, &[hash]));
            let object = tree.objects.get_mut(&id).expect("picked");
            object.size = object.size.max((first + 1) * BLOCK_BYTES);
            touched.insert(id);
        }
        _ => {
            let Some(id) = tree.pick(a, |o| o.fixed.is_file()) else {
                return;
            };
            let object = tree.objects.get_mut(&id).expect("picked");
            let size = u64::from(b % 9) * BLOCK_BYTES - u64::from(c).min(u64::from(b % 9));
            let end = size.div_ceil(BLOCK_BYTES);
            if size < object.size {
                entries.push(hole(id, end, 20));
            }
            object.size = size;
            object.attributes.mode = u32::from(c);
            tree.blocks
                .retain(|(of, block), _| *of != id || *block < end);
            touched.insert(id);
        }
    }
    tree.blocks.retain(|_, hash| *hash != BlockHash::ZERO);
    tree.forget_nameless();
}

fn same(records: &Records, tree: &Tree) {
    let state = records.state().expect("state");
    assert_eq!(state.objects, tree.objects.len() as u64);
    assert_eq!(state.names, tree.names.len() as u64);
    assert_eq!(
        state.bytes,
        tree.objects.values().map(|o| o.size).sum::<u64>()
    );
    for (id, object) in &tree.objects {
        let id = FileId(*id);
        let record = records.object(id).expect("read").expect("there");
        assert_eq!(&record.object, object);
        let links = records.links(id, 100).expect("read");
        let wanted: Vec<(FileId, Name)> = tree
            .names
            .iter()
            .filter(|(_, held)| **held == id.0)
            .map(|((parent, name), _)| (FileId(*parent), name.clone()))
            .collect();
        assert_eq!((record.links as usize, &links), (wanted.len(), &wanted));
        let children: Vec<(Name, FileId)> = tree
            .names
            .range((id.0, name("!"))..(id.0 + 1, name("!")))
            .map(|((_, name), id)| (name.clone(), FileId(*id)))
            .collect();
        assert_eq!(records.children(id, None, 100).expect("read"), children);
        let held = records.blocks(id, 0, 12).expect("read");
        for (block, hash) in (0..).zip(held) {
            let wanted = tree
                .blocks
                .get(&(id.0, block))
                .copied()
                .unwrap_or(BlockHash::ZERO);
            assert_eq!(hash, wanted);
        }
    }
}

/// A copy of the records by export and import.
fn copy(records: &Records, path: &Path, max: usize) -> Records {
    let other = Records::create(path).expect("created");
    let mut change = other.begin().expect("begun");
    let mut cursor = Cursor::default();
    loop {
        let items = records.items(&mut cursor, max).expect("exported");
        assert!(items.len() <= max);
        if items.is_empty() {
            break;
        }
        items
            .iter()
            .for_each(|item| change.item(item).expect("imported"));
    }
    let state = cursor.state().expect("exported");
    let commit = Commit {
        epoch: state.epoch,
        digest: state.digest,
        ..commit(900)
    };
    let applied = change.commit(&commit, Durability::None).expect("committed");
    assert_eq!(
        applied.state,
        State {
            highest_id: applied.state.highest_id,
            ..state
        }
    );
    other
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn records_hold_what_a_plain_tree_holds(
        epochs in prop::collection::vec(
            (prop::collection::vec(any::<Op>(), 0..25), any::<usize>()), 1..7),
        max in 1usize..40,
    ) {
        let (_place, path) = place();
        let records = Records::create(&path).expect("created");
        let mut tree = Tree { next: 1, ..Tree::default() };
        tree.objects.insert(1, object(DIRECTORY, 0o755, 0));
        for (number, (ops, turn)) in (1..).zip(epochs) {
            let before = tree.clone();
            let (mut entries, mut touched, mut names) =
                (Vec::new(), BTreeSet::new(), BTreeSet::new());
            for op in ops {
                step(&mut tree, op, &mut entries, &mut touched, &mut names);
            }
            let mut last: Vec<Entry> = touched
                .iter()
                .filter_map(|id| Some(is(*id, tree.objects.get(id)?.clone())))
                .chain(names.iter().map(|(parent, name)| {
                    let held = tree.names.get(&(*parent, name.clone()));
                    let object = held.copied().map(FileId);
                    Entry::Binding { parent: FileId(*parent), name: name.clone(), object }
                }))
                .collect();
            let length = last.len();
            last.rotate_left(turn % length.max(1));
            entries.extend(last);
            let applied = apply(&records, number, &entries).expect("applied");
            let gone: BTreeSet<u64> = applied.gone.iter().map(|id| id.0).collect();
            let wanted: BTreeSet<u64> = before
                .objects
                .keys()
                .filter(|id| !tree.objects.contains_key(id))
                .copied()
                .collect();
            prop_assert_eq!(gone, wanted);
            prop_assert_eq!(applied.state, records.state().expect("state"));
            same(&records, &tree);
        }
        let other = copy(&records, &path.with_file_name("copy.redb"), max);
        same(&other, &tree);
        drop(records);
        same(&Records::open(&path).expect("opened"), &tree);
    }
}

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
    let mut change = records.begin().expect("begun");
    change.clear().expect("cleared");
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
    assert!(matches!(
        records.state(),
        Err(Error::FellBack {
            had: EpochId(2),
            ..
        })
    ));
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
