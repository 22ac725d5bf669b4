//! What a state directory keeps, and what it makes of damage.

use super::*;
use crate::model::{BlockHash, Body, Commit, Entry, Extent, Fragment, Name, Timestamp};
use proptest::prelude::*;

fn place() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().expect("a directory");
    let path = place.path().join("deep/state");
    (place, path)
}

fn entry(number: u64) -> Entry {
    if number.is_multiple_of(2) {
        let name = Name::new(format!("n{number}")).expect("a name");
        let object = Some(FileId(number + 2));
        return Entry::Binding {
            parent: FileId(1),
            name,
            object,
        };
    }
    Entry::Fragment(Fragment {
        file: FileId(number),
        extent: Extent::new(0, 100),
        body: Body::Bytes,
        blocks: vec![BlockHash([7; 32])],
    })
}

fn seal(state: &StateDir, writer: &mut ManifestWriter, parent: EpochId) -> Commit {
    let commit = Commit {
        epoch: state.next_epoch().expect("an epoch"),
        parent,
        incarnation: state.incarnation(),
        sealed_at: Timestamp::default(),
        consistent: true,
        entries: writer.entries(),
        digest: writer.digest(),
    };
    writer.seal(&commit).expect("sealed");
    commit
}

fn entries(state: &StateDir, epoch: EpochId) -> Result<Vec<Entry>> {
    let mut reader = state.read_manifest(epoch)?;
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        found.push(entry);
    }
    Ok(found)
}

#[test]
fn a_state_directory_is_private_and_has_one_user() {
    let (_place, path) = place();
    assert!(matches!(
        StateDir::open(&path, false),
        Err(Error::Missing { .. })
    ));
    let state = StateDir::open(&path, true).expect("made");
    let mode = std::fs::metadata(&path).expect("there").mode();
    assert_eq!(mode & 0o777, 0o700);
    let error = StateDir::open(&path, false).expect_err("in use");
    let me = format!("pid {}", std::process::id());
    assert!(
        matches!(&error, Error::InUse { by, .. } if *by == me),
        "{error}"
    );
    drop(state);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
    StateDir::open(&path, false).expect("opened");
    let mode = std::fs::metadata(&path).expect("there").mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn what_it_knows_survives() {
    let (_place, path) = place();
    let state = StateDir::open(&path, true).expect("made");
    assert!(!state.last_stop().clean);
    let source = crate::disk::tree_identity(state.directory()).expect("identity");
    state.set_source(&source, "host:/target").expect("set");
    let replica = Uuid([3; 16]);
    state.set_replica(replica).expect("set");
    assert_eq!(state.next_session().expect("a session"), SessionId(1));
    let epochs: Vec<u64> = (0..3)
        .map(|_| state.next_epoch().expect("an epoch").0)
        .collect();
    assert_eq!(epochs, [1, 2, 3]);
    state.reserve_ids(FileId(70_000)).expect("reserved");
    let before = state.identity();
    drop(state);

    let state = StateDir::open(&path, false).expect("opened");
    assert_eq!(state.identity(), before);
    assert_eq!(
        state.last_stop(),
        LastStop {
            clean: false,
            same_boot: true
        }
    );
    assert!(
        state.next_epoch().expect("an epoch") > EpochId(3),
        "no epoch is named twice"
    );
    assert_eq!(state.ids_reserved(), FileId(70_000));
    assert_eq!(state.next_session().expect("a session"), SessionId(2));
    state.skip_epochs(EpochId(9_000)).expect("skipped");
    assert_eq!(state.next_epoch().expect("an epoch"), EpochId(9_001));
    state.forget_replica_state().expect("set");
    assert_eq!(
        (state.replica(), state.identity().replica),
        (None, Some(replica))
    );
    state.set_replica(replica).expect("set");
    assert_eq!(state.replica(), Some(replica));
    state.mark_clean().expect("marked");
    drop(state);

    let state = StateDir::open(&path, true).expect("opened");
    assert!(state.last_stop().clean);
    drop(state);
    assert!(
        !StateDir::open(&path, true)
            .expect("opened")
            .last_stop()
            .clean,
        "only once"
    );
}

#[test]
fn a_damaged_identity_is_told() {
    let (_place, path) = place();
    let state = StateDir::open(&path, true).expect("made");
    state.set_replica(Uuid([3; 16])).expect("set");
    state.mark_clean().expect("marked");
    drop(state);
    let good = std::fs::read(path.join("identity")).expect("read");
    let refused = |bytes: &[u8]| {
        std::fs::write(path.join("identity"), bytes).expect("written");
        match StateDir::open(&path, true) {
            Err(Error::Damaged { path, .. }) => assert!(path.ends_with("identity")),
            other => panic!("{other:?}"),
        }
    };
    for at in 0..good.len() {
        refused(&good[..at]);
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refused(&bad);
    }
    refused(&[&good[..], b"x"].concat());
    // Lost, while there is an index that belongs to it.
    std::fs::remove_file(path.join("identity")).expect("removed");
    std::fs::write(path.join("index.redb"), "x").expect("written");
    assert!(matches!(
        StateDir::open(&path, true),
        Err(Error::Damaged { .. })
    ));
    // A later version, whole.
    let later = Kind {
        format: 2,
        ..IDENTITY
    };
    let directory = open_directory(&path, false).expect("opened");
    later.write(directory.at(), &7u32).expect("written");
    let error = StateDir::open(&path, true).expect_err("refused");
    assert!(
        matches!(&error, Error::Version { found, .. } if found == "2"),
        "{error}"
    );
    // A mark that is damaged is none.
    std::fs::write(path.join("identity"), &good).expect("written");
    let mut mark = std::fs::read(path.join("clean")).expect("still there");
    mark[21] ^= 1;
    std::fs::write(path.join("clean"), mark).expect("written");
    assert!(
        !StateDir::open(&path, true)
            .expect("opened")
            .last_stop()
            .clean
    );
}

#[test]
fn a_manifest_is_sealed_read_and_trimmed() {
    let (_place, path) = place();
    let state = StateDir::open(&path, true).expect("made");
    let mut commits: Vec<Commit> = Vec::new();
    for count in [3, 0, 2000] {
        let mut writer = state.manifest().expect("opened");
        assert_eq!(writer.entries(), 0);
        (0..count).for_each(|number| writer.append(&entry(number)).expect("appended"));
        let parent = commits.last().map_or(EpochId(0), |commit| commit.epoch);
        commits.push(seal(&state, &mut writer, parent));
        assert!(matches!(
            writer.append(&entry(0)),
            Err(Error::Broken { .. })
        ));
        assert_eq!(writer.truncate(5).expect("cut"), 0, "a sealed one has none");
    }
    let all = state.manifests().expect("listed");
    let wanted = commits.iter().map(|c| SealedManifest {
        epoch: c.epoch,
        parent: c.parent,
        digest: c.digest,
    });
    assert_eq!(all, wanted.collect::<Vec<_>>());
    assert_eq!(
        state.read_manifest(EpochId(3)).expect("there").commit(),
        &commits[2]
    );
    let read = entries(&state, EpochId(3)).expect("read");
    assert_eq!(read, (0..2000).map(entry).collect::<Vec<_>>());
    assert!(matches!(
        state.read_manifest(EpochId(9)),
        Err(Error::NoManifest { .. })
    ));
    state.trim_manifests(EpochId(1)).expect("trimmed");
    state.trim_manifests_after(EpochId(2)).expect("trimmed");
    let left: Vec<EpochId> = state
        .manifests()
        .expect("listed")
        .iter()
        .map(|m| m.epoch)
        .collect();
    assert_eq!(left, [EpochId(2)]);
}

#[test]
fn a_stage_is_cut_back_and_survives_its_writer() {
    let (_place, path) = place();
    let state = StateDir::open(&path, true).expect("made");
    let mut writer = state.manifest().expect("opened");
    (0..10).for_each(|number| writer.append(&entry(number)).expect("appended"));
    let digest = |count| {
        let mut digest = crate::wire::EntryDigest::new();
        (0..count).for_each(|number| digest.add(&entry(number)).expect("encoded"));
        digest.digest()
    };
    assert_eq!(
        (writer.truncate(20).expect("cut"), writer.digest()),
        (10, digest(10))
    );
    assert_eq!(
        (writer.truncate(7).expect("cut"), writer.digest()),
        (7, digest(7))
    );
    writer.append(&entry(7)).expect("appended");
    drop(writer);
    let mut writer = state.manifest().expect("opened");
    assert_eq!((writer.entries(), writer.digest()), (8, digest(8)));
    let commit = seal(&state, &mut writer, EpochId(0));
    // The commit did not get there, the entries did.
    writer.unseal(commit.epoch).expect("unsealed");
    assert_eq!((writer.entries(), writer.digest()), (8, digest(8)));
    writer.append(&entry(8)).expect("appended");
    assert!(writer.unseal(commit.epoch).is_err());
    assert_eq!(
        (writer.truncate(9).expect("cut"), writer.digest()),
        (8, digest(8))
    );
    let commit = seal(&state, &mut writer, EpochId(0));
    assert_eq!(entries(&state, commit.epoch).expect("read").len(), 8);
}

#[test]
fn a_full_disk_leaves_nothing_half_trusted() {
    let (_place, path) = place();
    let state = StateDir::open(&path, true).expect("made");
    // Not the disk's own failure, but one that looks the same from here.
    std::fs::create_dir(path.join("identity.new")).expect("made");
    let before = state.identity();
    assert!(state.next_session().is_err());
    assert!(state.next_epoch().is_err());
    assert!(state.reserve_ids(FileId(99)).is_err());
    assert_eq!(state.identity(), before);
    std::fs::remove_dir(path.join("identity.new")).expect("removed");
    assert_eq!(state.next_session().expect("a session"), SessionId(1));
    assert_eq!(state.next_epoch().expect("an epoch"), EpochId(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Each byte of a sealed manifest counts; an open one keeps the entries before the damage.
    #[test]
    fn damage_to_a_manifest_is_found(at in any::<prop::sample::Index>(), bit in 0u8..8, cut: bool) {
        let (_place, path) = place();
        let state = StateDir::open(&path, true).expect("made");
        let mut writer = state.manifest().expect("opened");
        (0..6).for_each(|number| writer.append(&entry(number)).expect("appended"));
        drop(writer);
        let open = std::fs::read(path.join("manifest-open")).expect("read");
        let mut writer = state.manifest().expect("opened");
        let commit = seal(&state, &mut writer, EpochId(0));
        let name = path.join("manifest-0000000000000001");
        let sealed = std::fs::read(&name).expect("read");
        let damage = |bytes: &[u8]| {
            let at = at.index(bytes.len());
            let mut bad = bytes.to_vec();
            if cut { bad.truncate(at) } else { bad[at] ^= 1 << bit }
            bad
        };
        std::fs::write(&name, damage(&sealed)).expect("written");
        let refused = matches!(entries(&state, commit.epoch), Err(Error::Manifest { .. }));
        prop_assert!(refused);
        prop_assert_eq!(state.manifests().expect("listed"), []);

        std::fs::write(path.join("manifest-open"), damage(&open)).expect("written");
        let mut writer = state.manifest().expect("opened");
        let kept = writer.entries();
        prop_assert!(kept < 6);
        (kept..6).for_each(|number| writer.append(&entry(number)).expect("appended"));
        let commit = seal(&state, &mut writer, EpochId(1));
        let found = entries(&state, commit.epoch).expect("read");
        prop_assert_eq!(found, (0..6).map(entry).collect::<Vec<_>>());
    }
}
