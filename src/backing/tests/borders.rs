//! Walks, and the border of what is excluded.

use super::replica::{nothing, plain_tree};
use super::rig::Rig;
use crate::backing::{Local, SetAttr};
use crate::model::FileId;
use std::path::Path;

fn outside(path: &Path) -> bool {
    path.starts_with("out") || path.extension().is_some_and(|extension| extension == "o")
}

fn excluding() -> Rig {
    let rig = Rig::with(&["/out", "*.o"], Local::Os, false);
    rig.mkdir("out").unwrap();
    rig.mkdir("in").unwrap();
    rig.walk();
    rig
}

#[test]
fn what_is_excluded_works_and_is_not_recorded() {
    let rig = excluding();
    rig.ship();
    let before = rig.journal.pressure().operations;
    rig.mkdir("out/d").unwrap();
    rig.make("out/d/f", b"x").unwrap();
    rig.write("out/d/f", 5, b"y").unwrap();
    rig.set(
        "out/d/f",
        SetAttr {
            mode: Some(0o600),
            size: Some(3),
            ..SetAttr::default()
        },
    )
    .unwrap();
    rig.link("out/d/f", "out/g").unwrap();
    rig.rename("out/d", "out/e", 0).unwrap();
    rig.unlink("out/e/f").unwrap();
    assert_eq!(rig.journal.pressure().operations, before);
    rig.make("in/a.o", b"object").unwrap();
    assert!(
        rig.on("in/a.o", |id| Ok(rig.backing.is_excluded(id)))
            .unwrap()
    );
    rig.assert_equal(&outside);
}

#[test]
fn a_rename_in_is_a_creation_and_a_rename_out_a_removal() {
    let rig = excluding();
    rig.mkdir("out/d").unwrap();
    rig.mkdir("out/d/e").unwrap();
    rig.make("out/d/e/f", b"x").unwrap();
    rig.make("out/d/x.o", b"x").unwrap();
    rig.rename("out/d", "in/d", 0).unwrap();
    rig.write("in/d/e/f", 1, b"yz").unwrap();
    rig.walk_unwalked();
    rig.assert_equal(&outside);
    rig.rename("in/d/x.o", "in/d/x", 0).unwrap();
    rig.assert_equal(&outside);
    rig.rename("in/d", "out/d", 0).unwrap();
    rig.write("out/d/e/f", 0, b"unseen").unwrap();
    rig.assert_equal(&outside);
    assert!(
        !rig.replica_tree()
            .keys()
            .any(|path| path.starts_with("in/d"))
    );
    rig.rename("out/d/e/f", "in/f", 0).unwrap();
    rig.make("out/h", b"h").unwrap();
    rig.rename("out/h", "in/f", libc::RENAME_EXCHANGE).unwrap();
    rig.assert_equal(&outside);
    rig.rename("in/f", "in/f.o", 0).unwrap();
    rig.make("in/f", b"new").unwrap();
    rig.rename("in/f", "in/f.o", libc::RENAME_EXCHANGE).unwrap();
    rig.assert_equal(&outside);
}

#[test]
fn what_comes_back_while_its_removal_is_on_its_way_is_told_again() {
    for abandon in [false, true] {
        let rig = excluding();
        rig.mkdir("in/d").unwrap();
        rig.mkdir("in/d/e").unwrap();
        rig.make("in/d/e/f", b"f").unwrap();
        rig.make("in/d/g", b"g").unwrap();
        rig.assert_equal(&outside);
        let held = rig.find("in/d/g").unwrap();
        rig.rename("in/d", "out/d", 0).unwrap();
        rig.unlink("out/d/e/f").unwrap();
        rig.journal.seal(true).unwrap();
        rig.rename("out/d", "in/h", 0).unwrap();
        rig.rename("in/h/g", "in/h/i", 0).unwrap();
        rig.walk_unwalked();
        if abandon {
            rig.journal.abandon();
        } else {
            assert!(rig.finish());
        }
        rig.assert_equal(&outside);
        assert_eq!(rig.on("in/h/i", Ok).unwrap(), held);
    }
}

#[test]
fn a_directory_that_was_moved_while_unmounted_is_met_after_its_old_name_was_shipped() {
    let rig = Rig::new();
    rig.mkdir("a").unwrap();
    rig.mkdir("a/b").unwrap();
    rig.make("a/b/f", b"f").unwrap();
    rig.assert_equal(&nothing);
    std::fs::rename(rig.real.path().join("a"), rig.real.path().join("z")).unwrap();
    let rig = rig.remount();
    rig.backing.begin_walk();
    let name = crate::model::Name::new("a").unwrap();
    assert!(rig.backing.inspect(FileId::ROOT, &name).unwrap().is_none());
    rig.journal.seal(false).unwrap();
    rig.walk();
    assert!(rig.finish());
    rig.assert_equal(&nothing);
}

#[test]
fn a_hard_link_is_followed_over_the_border() {
    let rig = excluding();
    rig.make("in/f", b"one").unwrap();
    rig.link("in/f", "out/f").unwrap();
    rig.ship();
    rig.write("out/f", 0, b"two").unwrap();
    rig.assert_equal(&outside);
    rig.make("out/g", b"g").unwrap();
    rig.link("out/g", "in/g").unwrap();
    rig.assert_equal(&outside);
    rig.write("out/g", 0, b"h").unwrap();
    rig.assert_equal(&outside);
    rig.unlink("in/g").unwrap();
    assert!(
        rig.on("out/g", |id| Ok(rig.backing.is_excluded(id)))
            .unwrap()
    );
    rig.write("out/g", 0, b"i").unwrap();
    rig.link("out/g", "in/g").unwrap();
    rig.assert_equal(&outside);
}

#[test]
fn a_walk_finds_all_and_a_second_one_nothing() {
    let rig = Rig::new();
    let real = rig.real.path();
    std::fs::create_dir_all(real.join("a/b/c")).unwrap();
    std::fs::write(real.join("a/b/c/f"), "x").unwrap();
    std::fs::hard_link(real.join("a/b/c/f"), real.join("g")).unwrap();
    std::os::unix::fs::symlink("g", real.join("a/l")).unwrap();
    rig.walk();
    rig.assert_equal(&nothing);
    let rig = rig.remount();
    rig.walk();
    assert_eq!(rig.journal.pressure().objects, 0, "nothing has changed");
    let real = rig.real.path().to_owned();
    let id = rig.on("g", Ok).unwrap();
    std::fs::write(real.join("g"), "changed").unwrap();
    std::fs::rename(real.join("a/b"), real.join("b")).unwrap();
    std::fs::remove_file(real.join("a/l")).unwrap();
    std::os::unix::fs::symlink("other", real.join("a/l")).unwrap();
    let rig = rig.remount();
    rig.walk();
    assert_eq!(
        rig.on("b/c/f", Ok).unwrap(),
        id,
        "a moved directory keeps its ids"
    );
    rig.assert_equal(&nothing);
}

#[test]
fn work_before_the_walk_hides_no_edit_made_while_unmounted() {
    let rig = Rig::new();
    rig.mkdir("d").unwrap();
    rig.make("d/f", &[1; 200_000]).unwrap();
    rig.make("d/g", b"g").unwrap();
    rig.assert_equal(&nothing);
    let real = rig.real.path().to_owned();
    let mut content = std::fs::read(real.join("d/f")).unwrap();
    content[150_000] = 2;
    std::fs::write(real.join("d/f"), &content).unwrap();
    std::fs::write(real.join("d/new"), "new").unwrap();
    let rig = rig.remount();
    rig.write("d/f", 0, b"first").unwrap();
    rig.rename("d/new", "e", 0).unwrap();
    rig.rename("d", "h", 0).unwrap();
    rig.ship();
    rig.make("h/made", b"made").unwrap();
    rig.walk();
    rig.assert_equal(&nothing);
}

#[test]
fn operations_on_what_no_walk_has_seen_are_not_lost() {
    let rig = Rig::new();
    let real = rig.real.path().to_owned();
    std::fs::create_dir_all(real.join("a/b/c")).unwrap();
    std::fs::write(real.join("a/b/c/f"), "x").unwrap();
    std::fs::write(real.join("a/b/g"), "x").unwrap();
    rig.make("a/b/c/new", b"new").unwrap();
    rig.write("a/b/g", 1, b"y").unwrap();
    rig.ship();
    rig.rename("a/b", "b", 0).unwrap();
    rig.link("b/c/f", "f").unwrap();
    rig.ship();
    rig.unlink("b/g").unwrap();
    rig.walk();
    rig.assert_equal(&nothing);
    assert_eq!(rig.replica_tree(), plain_tree(&real, &nothing));
}

#[test]
fn a_suspect_is_compared_whatever_its_stamp_says() {
    let rig = Rig::new();
    let id = rig.make("f", b"abc").unwrap();
    rig.walk();
    rig.assert_equal(&nothing);
    rig.contents.lock().insert(id, b"xxx".to_vec());
    assert!(rig.backing.inspect_object(id).unwrap());
    rig.assert_equal(&nothing);
    rig.unlink("f").unwrap();
    assert!(!rig.backing.inspect_object(id).unwrap());
    assert!(!rig.backing.inspect_object(FileId(999_999)).unwrap());
}
