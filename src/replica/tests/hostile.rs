//! Primaries and directories that mean harm (invariant I10).

use super::model::{compare, place};
use super::session::{Primary, a_file, a_world, first, hello};
use super::world::{Dice, bytes, name, object};
use crate::model::{Body, Entry, Extent, FileId, Fixed, Fragment};
use crate::wire::{Refusal, ToPrimary, ToReplica};
use std::path::Path;

fn bind(parent: u64, named: &str, id: Option<u64>) -> (Entry, Vec<u8>) {
    let entry = Entry::Binding {
        parent: FileId(parent),
        name: name(named),
        object: id.map(FileId),
    };
    (entry, Vec::new())
}

fn thing(id: u64, fixed: Fixed) -> (Entry, Vec<u8>) {
    let object = object(fixed, &mut Dice(id));
    let id = FileId(id);
    (Entry::Object { id, object }, Vec::new())
}

/// Ships entries that must be refused.
fn refused(root: &Path, session: u64, epoch: u64, entries: &[(Entry, Vec<u8>)]) {
    let (mut primary, _) = Primary::greet(root, hello(session));
    for (sequence, (entry, bytes)) in entries.iter().enumerate() {
        primary.stage(sequence as u64, entry, bytes);
    }
    let commit = primary.commit_of(epoch, entries.len());
    primary.say(&ToReplica::Commit(commit));
    loop {
        match primary.answer() {
            ToPrimary::Received(_) | ToPrimary::Durable(_) => {}
            ToPrimary::Refused { reason, .. } => {
                assert_eq!(reason, Refusal::Protocol);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let _ = primary.served.join().expect("no panic");
}

#[test]
fn epochs_that_make_no_sense_are_refused() {
    let place = place();
    let root = place.path();
    let world = a_world(5);
    let (mut primary, _) = Primary::greet(root, hello(1));
    primary.ship(1, &first(&world));
    primary.goodbye();
    let directory = || thing(900, Fixed::Directory);
    let other = || thing(901, Fixed::Directory);
    let file = || thing(902, Fixed::File);
    let cases = [
        // A parent, or an object, that is not known, or that is no directory.
        vec![directory(), bind(77_777, "x", Some(900))],
        vec![bind(1, "x", Some(77_777))],
        vec![
            file(),
            directory(),
            bind(1, "f", Some(902)),
            bind(902, "x", Some(900)),
        ],
        // A directory with two names, below itself, or nowhere.
        vec![
            directory(),
            bind(1, "x", Some(900)),
            bind(1, "y", Some(900)),
        ],
        vec![
            directory(),
            other(),
            bind(900, "x", Some(901)),
            bind(901, "y", Some(900)),
        ],
        // Content of a directory.
        vec![
            directory(),
            bind(1, "x", Some(900)),
            bytes(FileId(900), 0, b"x", None),
        ],
        // Another kind.
        vec![thing(1, Fixed::File)],
        vec![thing(1, Fixed::Symlink(b"/etc"[..].into()))],
    ];
    for (session, entries) in cases.iter().enumerate() {
        refused(root, session as u64 + 2, 2, entries);
        compare(root, &world);
    }
}

#[test]
fn what_breaks_the_protocol_is_refused() {
    let place = place();
    let entries = a_file(2, "f", b"abc");
    type Spoil = fn(&mut Primary, &[(Entry, Vec<u8>)]);
    let spoils: [Spoil; 6] = [
        // Numbers that leave one out.
        |primary, entries| primary.stage(1, &entries[0].0, &[]),
        // A commit of other entries, another digest, another parent.
        |primary, entries| {
            let commit = primary.commit_of(1, entries.len());
            primary.say(&ToReplica::Commit(commit));
        },
        |primary, _| {
            let mut commit = primary.commit_of(1, 0);
            commit.digest = [9; 32];
            primary.say(&ToReplica::Commit(commit));
        },
        |primary, _| {
            let commit = primary.commit_of(5, 0);
            primary.say(&ToReplica::Commit(commit));
        },
        // A block that is not what its hash is of.
        |primary, _| {
            let (entry, mut data) = bytes(FileId(2), 0, &[1; 65536], None);
            data[7] = 2;
            primary.stage(0, &entry, &data);
        },
        |primary, _| primary.say(&ToReplica::Hello(hello(99))),
    ];
    for (session, spoil) in spoils.iter().enumerate() {
        let (mut primary, _) = Primary::greet(place.path(), hello(session as u64 + 1));
        spoil(&mut primary, &entries);
        let answer = primary.answer();
        assert!(
            matches!(
                answer,
                ToPrimary::Refused {
                    reason: Refusal::Protocol,
                    ..
                }
            ),
            "{session}: {answer:?}"
        );
        assert!(primary.served.join().expect("no panic").is_err());
    }
    assert!(!place.path().join("f").exists());
}

#[test]
fn a_reserved_name_never_gets_through() {
    let entry = bind(1, ".mirrorfs", Some(2)).0;
    assert!(!entry.is_valid());
    let place = place();
    let (primary, _) = Primary::greet(place.path(), hello(1));
    // As a frame of a primary that does not check.
    let message = ToReplica::Stage { sequence: 0, entry };
    let encoded = postcard::to_stdvec(&message).expect("encodes");
    let mut body = vec![0];
    body.extend(postcard::to_stdvec(&(encoded.len() as u32)).expect("encodes"));
    body.extend(&encoded);
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(crc32fast::hash(&body).to_le_bytes());
    frame.extend(body);
    use std::io::Write;
    let mut primary = primary;
    let mut raw = primary.send.get_ref().try_clone().expect("a clone");
    raw.write_all(&frame).expect("sent");
    // The link is of no use after that.
    let end = primary.receive.receive::<ToPrimary>();
    assert!(
        matches!(end, Ok(None) | Ok(Some((ToPrimary::Refused { .. }, _)))),
        "{end:?}"
    );
    let _ = primary.served.join().expect("no panic");
}

#[test]
fn what_is_planted_in_the_tree_leads_nowhere() {
    let place = place();
    let root = place.path().join("target");
    let outside = place.path().join("outside");
    std::fs::create_dir(&outside).expect("made");
    std::fs::write(outside.join("f"), "precious").expect("made");
    let (mut primary, _) = Primary::greet(&root, hello(1));
    let mut entries = vec![thing(2, Fixed::Directory), bind(1, "d", Some(2))];
    entries.extend(a_file(3, "f", b"first"));
    entries.extend([thing(4, Fixed::File), bind(2, "f", Some(4))]);
    primary.ship(1, &entries);
    // A directory becomes a link that leads away, a file a link, another a name of a file there.
    std::fs::remove_dir_all(root.join("d")).expect("removed");
    std::os::unix::fs::symlink(&outside, root.join("d")).expect("planted");
    std::fs::remove_file(root.join("f")).expect("removed");
    std::fs::hard_link(outside.join("f"), root.join("f")).expect("planted");
    let mut changed = a_file(3, "f", b"second");
    changed.remove(0);
    let mut inner = a_file(4, "f", b"third");
    inner.remove(0);
    changed.extend(inner);
    let mut suspects = Vec::new();
    for (sequence, (entry, bytes)) in changed.iter().enumerate() {
        primary.stage(sequence as u64, entry, bytes);
    }
    let commit = primary.commit_of(2, changed.len());
    primary.say(&ToReplica::Commit(commit));
    loop {
        match primary.answer() {
            ToPrimary::Suspect { file } => suspects.push(file.0),
            ToPrimary::Applied { .. } => break,
            _ => {}
        }
    }
    primary.goodbye();
    assert_eq!(
        std::fs::read(outside.join("f")).expect("there"),
        b"precious"
    );
    assert_eq!(std::fs::read_dir(&outside).expect("list").count(), 1);
    assert!(
        std::fs::read(root.join("f"))
            .expect("there")
            .starts_with(b"second")
    );
    assert!(root.join("d").symlink_metadata().expect("there").is_dir());
    assert_eq!(
        std::fs::read(root.join("d/f")).expect("made again"),
        b"third"
    );
    assert!(suspects.contains(&3) && suspects.contains(&2) && suspects.contains(&4));
}

#[test]
fn strangers_never_block() {
    let place = place();
    let root = place.path();
    let (mut primary, _) = Primary::greet(root, hello(1));
    let entries = [
        thing(2, Fixed::Directory),
        bind(1, "d", Some(2)),
        thing(3, Fixed::Directory),
        bind(2, "e", Some(3)),
    ];
    primary.ship(1, &entries);
    // Put there by hand: in the way of a file, of a directory, and within what is removed.
    std::fs::create_dir_all(root.join("f/deep/er")).expect("made");
    std::fs::write(root.join("g"), "x").expect("made");
    std::fs::write(root.join("d/e/mine"), "x").expect("made");
    let mut entries = a_file(4, "f", b"file");
    entries.extend([
        thing(5, Fixed::Directory),
        bind(1, "g", Some(5)),
        bind(1, "d", None),
    ]);
    primary.ship(2, &entries);
    primary.goodbye();
    assert_eq!(std::fs::read(root.join("f")).expect("there"), b"file");
    assert!(root.join("g").is_dir() && !root.join("d").exists());
}

#[test]
fn fragments_out_of_bounds_are_not_entries() {
    let wrong = [
        Fragment {
            file: FileId(2),
            extent: Extent::new(0, 2 << 20),
            body: Body::Bytes,
            blocks: Vec::new(),
        },
        Fragment {
            file: FileId(2),
            extent: Extent::new(u64::MAX - 5, 10),
            body: Body::Hole,
            blocks: Vec::new(),
        },
    ];
    for fragment in wrong {
        assert!(!Entry::Fragment(fragment).is_valid());
    }
}
