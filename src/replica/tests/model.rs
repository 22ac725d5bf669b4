//! Random epochs, through stage, commit and apply, against the model.

use super::super::ReplicaError;
use super::super::attributes::Policy;
use super::super::engine::Engine;
use super::super::home::Home;
use super::super::redo::Header;
use super::super::stage::Stage;
use super::super::tree::{Hook, Tree};
use super::world::{Dice, World};
use crate::model::{Commit, Entry, EpochId, FileId, Incarnation, SessionId, Timestamp, Uuid};
use crate::records::Records;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A place in memory if there is one: these tests sync a lot.
pub fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a directory")
}

pub fn policy() -> Policy {
    Policy::of_process(false)
}

pub fn make(root: &Path) {
    let home = Home::create(root).expect("made");
    Records::create(&home.records_path()).expect("made");
}

pub fn open(root: &Path, hook: Option<Arc<dyn Hook>>) -> (Engine, Stage) {
    try_open(root, hook).expect("an engine")
}

pub fn try_open(root: &Path, hook: Option<Arc<dyn Hook>>) -> Result<(Engine, Stage), ReplicaError> {
    let home = Home::open(root).expect("opened").expect("a replica");
    let records = Records::open(&home.records_path()).expect("records");
    let stop = Arc::default();
    let mut tree = Tree::open(&home, Arc::clone(&stop)).expect("a tree");
    if let Some(hook) = hook {
        tree = tree.hooked(hook);
    }
    let (engine, found) = Engine::with_tree(home, Arc::new(tree), records, policy(), stop)?;
    let header = Header::new(Uuid([1; 16]), Incarnation(1), SessionId(1)).expect("a header");
    let stage = Stage::new(engine.tree.clone(), header, found.next);
    Ok((engine, stage))
}

/// Stages and commits an epoch.
pub fn commit(engine: &Engine, stage: &mut Stage, entries: &[(Entry, Vec<u8>)]) {
    for (entry, bytes) in entries {
        assert!(entry.is_valid(), "{entry:?}");
        let is_known = |id| Ok(engine.kind(id)?.is_some());
        stage.add(entry, bytes, is_known).expect("staged");
    }
    let parent = engine.durable().0;
    let commit = Commit {
        epoch: EpochId(parent.0 + 1),
        parent,
        incarnation: Incarnation(1),
        sealed_at: Timestamp::default(),
        consistent: true,
        entries: entries.len() as u64,
        digest: stage.digest(),
    };
    engine.push(stage.commit(&commit).expect("committed"));
}

/// Panics unless the directory is what the model is.
pub fn compare(root: &Path, world: &World) {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<FileId, u64> = BTreeMap::new();
    let mut left: Vec<(PathBuf, FileId)> = vec![(root.to_owned(), FileId::ROOT)];
    while let Some((path, id)) = left.pop() {
        let thing = &world.things[&id];
        let metadata = path.symlink_metadata().expect("there");
        let attributes = &thing.object.attributes;
        let at = path.display();
        assert_eq!(
            (metadata.mtime(), metadata.mtime_nsec()),
            (attributes.mtime.secs, i64::from(attributes.mtime.nanos)),
            "{at} {id}"
        );
        let mode = metadata.permissions().mode();
        assert_eq!(mode & libc::S_IFMT, thing.object.fixed.type_bits(), "{at}");
        if policy().privileged {
            assert_eq!(
                (metadata.uid(), metadata.gid()),
                (attributes.uid, attributes.gid),
                "{at}"
            );
            assert_eq!(mode & 0o7777, attributes.mode, "{at}");
        }
        let inode = *inodes.entry(id).or_insert(metadata.ino());
        assert_eq!(inode, metadata.ino(), "{at}");
        if metadata.is_file() {
            assert!(
                std::fs::read(&path).expect("read") == thing.content,
                "content of {at} {id}"
            );
        }
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path).expect("list").flatten() {
                let name = entry.file_name();
                if path == root && name == ".mirrorfs" {
                    continue;
                }
                let spot = (
                    id,
                    crate::model::Name::try_from(name.as_os_str()).expect("a name"),
                );
                let held = world.names.get(&spot);
                let held = *held.unwrap_or_else(|| panic!("{at}/{} is there", spot.1));
                found.insert(spot, held);
                left.push((entry.path(), held));
            }
        }
    }
    assert_eq!(found, world.names);
    for shelf in ["park", "trash", "redo"] {
        let shelf = root.join(".mirrorfs").join(shelf);
        assert_eq!(
            std::fs::read_dir(&shelf).expect("list").count(),
            0,
            "{}",
            shelf.display()
        );
    }
}

fn check_records(engine: &Engine, world: &World) {
    let state = engine.records.state().expect("a state");
    assert_eq!(state.objects, world.things.len() as u64);
    assert_eq!(state.names, world.names.len() as u64);
}

/// More to hunt with.
const CASES: u32 = match option_env!("MIRRORFS_CASES") {
    Some(_) => 600,
    None => 12,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_tree_is_the_model(seed in any::<u64>(), epochs in 1usize..7, together in 1usize..4) {
        history(seed, epochs, together);
    }
}

#[test]
fn a_history_that_once_failed() {
    history(7_354_341_160_581_789_714, 6, 1);
}

fn history(seed: u64, epochs: usize, together: usize) {
    let dice = &mut Dice(seed);
    let place = place();
    make(place.path());
    let mut world = World::new();
    let mut done = 0;
    let mut first = true;
    while done < epochs {
        let (engine, mut stage) = open(place.path(), None);
        for _ in 0..together {
            let mut next = world.clone();
            for _ in 0..dice.roll(14) + 1 {
                next.change(dice);
            }
            let mut before = world.clone();
            if std::mem::take(&mut first) {
                before
                    .things
                    .get_mut(&FileId::ROOT)
                    .expect("root")
                    .object
                    .attributes
                    .uid = 7;
            }
            let entries = next.epoch(&before, dice);
            if !entries.is_empty() {
                commit(&engine, &mut stage, &entries);
            }
            world = next;
            done += 1;
        }
        let suspects = engine.run_once().expect("applied");
        assert!(suspects.is_empty(), "{suspects:?}");
        compare(place.path(), &world);
        check_records(&engine, &world);
    }
}
