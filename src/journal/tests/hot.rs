//! The hot set over crashes, and with a disk that fails.

use super::tree::{Index, State, Tree, object};
use super::{directory, name, scratch, start};
use crate::journal::hot_log::{Content, Log};
use crate::journal::{Journal, Limits, Suspects};
use crate::model::{Extent, FileId, Fixed, Stamp};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const FILES: u64 = 8;

fn limits() -> Limits {
    Limits {
        hot_files_max: 4,
        hot_retry: Duration::ZERO,
        hot_settle: Duration::ZERO,
        ..Limits::default()
    }
}

fn index() -> Arc<Index> {
    let index = Index::default();
    let mut state = State::empty();
    for id in 2..2 + FILES {
        state
            .objects
            .insert(FileId(id), (object(Fixed::File), Vec::new()));
        state
            .names
            .insert((FileId::ROOT, name(&format!("f{id}"))), FileId(id));
    }
    *index.0.lock() = state;
    Arc::new(index)
}

fn tree() -> Tree {
    let tree = Tree::new();
    (2..2 + FILES).for_each(|id| tree.create(FileId(id), Fixed::File));
    tree
}

fn open(path: &Path) -> (Journal, Suspects) {
    start(path, index(), limits())
}

fn write(journal: &Journal, tree: &Tree, id: u64) {
    let operation = journal.begin();
    operation
        .before_data(FileId(id), Extent::new(0, 1), tree)
        .expect("ok");
    operation.data(FileId(id), Extent::new(0, 1));
}

fn commit(journal: &Journal) {
    let sealed = journal.seal(true).expect("a change");
    assert!(sealed.finish_reading());
    journal.committed(sealed.epoch());
}

fn files(ids: &[u64]) -> Suspects {
    Suspects::Files(ids.iter().map(|&id| FileId(id)).collect())
}

#[test]
fn in_place_writes_are_suspect_after_a_crash() {
    let (place, tree) = (scratch(), tree());
    let (journal, suspects) = open(place.path());
    assert_eq!(
        suspects,
        Suspects::Everything,
        "a new state directory knows nothing"
    );
    journal.suspects_settled();
    write(&journal, &tree, 2);
    commit(&journal);
    assert!(journal.close_clean().expect("closed"));
    drop(journal);

    let (journal, suspects) = open(place.path());
    assert_eq!(suspects, Suspects::None);
    write(&journal, &tree, 5);
    write(&journal, &tree, 3);
    write(&journal, &tree, 5);
    let fresh = journal.begin();
    fresh.created(FileId(99), &Stamp::default(), 1);
    fresh
        .before_data(FileId(99), Extent::new(0, 1), &tree)
        .expect("ok");
    drop(fresh);
    assert!(!journal.close_clean().expect("asked"), "there are changes");
    drop(journal);

    // Not compared yet when it crashes again.
    let (journal, suspects) = open(place.path());
    assert_eq!(suspects, files(&[3, 5]));
    write(&journal, &tree, 4);
    commit(&journal);
    drop(journal);
    let (journal, suspects) = open(place.path());
    assert_eq!(suspects, files(&[3, 4, 5]));
    journal.suspects_settled();
    drop(journal);
    assert_eq!(open(place.path()).1, files(&[3, 4, 5]));
}

#[test]
fn a_full_set_makes_room_or_suspects_everything() {
    let (place, tree) = (scratch(), tree());
    assert!(open(place.path()).0.close_clean().expect("closed"));
    let (journal, _) = open(place.path());
    (2..6).for_each(|id| write(&journal, &tree, id));
    commit(&journal);
    // All four may leave.
    write(&journal, &tree, 6);
    let read = || Log::read(&Arc::new(directory(place.path())), 10).expect("read");
    assert!(!read().everything && read().files.contains(&FileId(6)));
    (7..10).for_each(|id| write(&journal, &tree, id));
    // None of 6 to 9 may.
    write(&journal, &tree, 2);
    assert!(read().everything);
    write(&journal, &tree, 3);
    assert!(!journal.degraded());
    commit(&journal);
    assert!(
        !read().everything,
        "what only that record covered is committed"
    );
    write(&journal, &tree, 4);
    drop(journal);
    assert!(matches!(open(place.path()).1, Suspects::Files(files) if files.contains(&FileId(4))));
}

#[test]
fn a_torn_or_foreign_log_never_hides_a_suspect() {
    let place = scratch();
    let fd = Arc::new(directory(place.path()));
    let ids: Vec<FileId> = (1..6).map(FileId).collect();
    let content = Content {
        files: ids.clone(),
        everything: false,
    };
    Log::create(Arc::clone(&fd), 8, &content).expect("made");
    let path = place.path().join("hot");
    let good = std::fs::read(&path).expect("read");
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        let read = Log::read(&fd, 8).expect("read");
        let damaged = (at / 16).checked_sub(1);
        let left: Vec<FileId> = ids
            .iter()
            .enumerate()
            .filter(|(i, _)| Some(*i) != damaged)
            .map(|(_, id)| *id)
            .collect();
        assert!(read.everything || read.files == left);
        assert!(at >= 16 || read.everything, "a damaged head");
    }
    std::fs::write(&path, &good[..16 * 3 + 7]).expect("written");
    assert_eq!(Log::read(&fd, 8).expect("read").files, ids[..2]);
}

#[test]
fn a_state_disk_that_fails_stops_nobody() {
    let (place, tree) = (scratch(), tree());
    let (journal, _) = open(place.path());
    journal.suspects_settled();
    // No new file can take the place of the log: its temporary name is a directory.
    std::fs::create_dir_all(place.path().join("hot.new/x")).expect("made");
    for round in 0..3 {
        (2..6).for_each(|id| write(&journal, &tree, id));
        commit(&journal);
        (6..10).for_each(|id| write(&journal, &tree, id));
        if round < 2 {
            commit(&journal);
        }
    }
    assert!(journal.degraded());
    assert!(journal.close_clean().is_ok_and(|closed| !closed));
    std::fs::remove_dir_all(place.path().join("hot.new")).expect("removed");
    write(&journal, &tree, 2);
    assert!(!journal.degraded());
    drop(journal);
    let suspects = open(place.path()).1;
    let wanted: Vec<FileId> = (6..10).map(FileId).collect();
    match suspects {
        Suspects::Files(files) => assert!(wanted.iter().all(|id| files.contains(id))),
        Suspects::Everything => {}
        Suspects::None => panic!("suspects are missing"),
    }
}
