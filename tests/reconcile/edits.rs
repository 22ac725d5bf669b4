//! What is done to the tree, and what a walk makes of it.

use super::actions::{Action, User, action, offline};
use super::primary::Primary;
use mirrorfs::exclude::Exclude;
use mirrorfs::model::{Entry, Fixed};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

type Entries = Vec<(Entry, Option<Vec<u8>>)>;

// A tree that is mirrored already, and then edited with nothing mounted.
fn edited(before: impl FnOnce(&Path), edit: impl FnOnce(&Path)) -> (Primary, Entries) {
    let mut primary = Primary::new();
    before(&primary.source());
    primary.start();
    primary.settle();
    primary.stop();
    // A stamp within one tick of the clock proves nothing; here it shall.
    primary.let_the_clock_tick();
    primary.start();
    primary.settle();
    primary.stop();
    edit(&primary.source());
    primary.start();
    let entries = primary.settle();
    (primary, entries)
}

fn sent(entries: &Entries) -> usize {
    entries
        .iter()
        .filter_map(|(_, bytes)| bytes.as_ref())
        .map(Vec::len)
        .sum()
}

fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    fs::write(path, bytes).expect("a write");
}

fn large(seed: u8) -> Vec<u8> {
    (0..300_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed)
        .collect()
}

#[test]
fn nothing_is_sent_when_nothing_was_done() {
    let before = |root: &Path| {
        fs::create_dir_all(root.join("a/b")).expect("directories");
        write(root.join("a/b/file"), large(1));
        symlink("file", root.join("a/b/link")).expect("a link");
        fs::hard_link(root.join("a/b/file"), root.join("hard")).expect("a link");
    };
    let (_, entries) = edited(before, |_| ());
    assert!(entries.is_empty(), "{entries:?}");
}

#[test]
fn a_renamed_directory_is_one_name_and_no_content() {
    let before = |root: &Path| {
        fs::create_dir_all(root.join("old/deep")).expect("directories");
        for number in 0..20 {
            write(root.join(format!("old/deep/{number}")), large(number));
        }
    };
    let (_, entries) = edited(before, |root| {
        fs::rename(root.join("old"), root.join("new")).expect("a rename");
    });
    assert_eq!(sent(&entries), 0);
    let bindings = entries
        .iter()
        .filter(|(entry, _)| matches!(entry, Entry::Binding { .. }));
    assert_eq!(bindings.count(), 2, "{entries:?}");
}

#[test]
fn exchanged_directories_keep_their_content() {
    let before = |root: &Path| {
        for name in ["one", "two"] {
            fs::create_dir(root.join(name)).expect("a directory");
            write(root.join(name).join("file"), large(name.as_bytes()[0]));
        }
    };
    let (_, entries) = edited(before, |root| {
        let (one, two) = (root.join("one"), root.join("two"));
        rustix::fs::renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).expect("an exchange");
    });
    assert_eq!(sent(&entries), 0);
}

#[test]
fn content_of_the_same_size_and_time_is_found_by_its_ctime() {
    let before = |root: &Path| write(root.join("file"), large(1));
    let (_, entries) = edited(before, |root| {
        let path = root.join("file");
        let seen = fs::metadata(&path).expect("a file");
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("a file");
        file.write_all_at(b"stealth", 200_000).expect("a write");
        let mtime = Timespec {
            tv_sec: seen.mtime(),
            tv_nsec: seen.mtime_nsec(),
        };
        let times = Timestamps {
            last_access: mtime,
            last_modification: mtime,
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).expect("utimensat");
    });
    // Only the block that differs.
    assert!(
        (1..=65536).contains(&sent(&entries)),
        "{} bytes",
        sent(&entries)
    );
}

#[test]
fn hard_links_are_made_and_broken() {
    let before = |root: &Path| {
        write(root.join("single"), large(1));
        write(root.join("double"), large(2));
        fs::hard_link(root.join("double"), root.join("double2")).expect("a link");
    };
    let (_, entries) = edited(before, |root| {
        fs::hard_link(root.join("single"), root.join("single2")).expect("a link");
        write(root.join("copy"), large(9));
        fs::rename(root.join("copy"), root.join("double2")).expect("a rename");
    });
    assert!(sent(&entries) <= 300_000, "{} bytes", sent(&entries));
}

#[test]
fn kinds_are_replaced_targets_changed_trees_deleted() {
    let before = |root: &Path| {
        write(root.join("file-to-dir"), "x");
        fs::create_dir_all(root.join("dir-to-file/below/more")).expect("directories");
        write(root.join("dir-to-file/below/more/file"), "x");
        symlink("old", root.join("link")).expect("a link");
        symlink("target", root.join("link-to-file")).expect("a link");
        fs::create_dir_all(root.join("gone/a/b/c")).expect("directories");
        write(root.join("gone/a/b/c/file"), "x");
    };
    let (primary, entries) = edited(before, |root| {
        fs::remove_file(root.join("file-to-dir")).expect("a removal");
        fs::create_dir(root.join("file-to-dir")).expect("a directory");
        write(root.join("file-to-dir/in"), "y");
        fs::remove_dir_all(root.join("dir-to-file")).expect("a removal");
        write(root.join("dir-to-file"), "y");
        fs::remove_file(root.join("link")).expect("a removal");
        symlink("new", root.join("link")).expect("a link");
        fs::remove_file(root.join("link-to-file")).expect("a removal");
        write(root.join("link-to-file"), "y");
        fs::remove_dir_all(root.join("gone")).expect("a removal");
    });
    let links = entries.iter().filter(|(entry, _)| {
        matches!(entry, Entry::Object { object, .. } if matches!(object.fixed, Fixed::Symlink(_)))
    });
    assert_eq!(links.count(), 1);
    let state = primary.index().state().expect("a state");
    // Root, file-to-dir, in, dir-to-file, link, link-to-file.
    assert_eq!(state.objects, 6);
}

#[test]
fn another_pattern_is_found_by_the_walk() {
    let mut primary = Primary::new();
    fs::create_dir_all(primary.source().join("target/debug")).expect("directories");
    write(primary.source().join("target/debug/x"), "x");
    write(primary.source().join("a.o"), "x");
    write(primary.source().join("a.c"), "x");
    for patterns in [vec!["target/"], vec!["*.o"], vec![], vec!["target/", "*.o"]] {
        let patterns: Vec<String> = patterns.into_iter().map(str::to_owned).collect();
        primary.exclude = Exclude::new(&patterns, &[]).expect("patterns");
        primary.start();
        primary.settle();
        primary.stop();
    }
}

#[test]
fn a_tree_that_was_renamed_into_sight_is_walked() {
    let mut primary = Primary::new();
    primary.exclude = Exclude::new(&["hidden".to_owned()], &[]).expect("a pattern");
    fs::create_dir_all(primary.source().join("hidden/a/b")).expect("directories");
    write(primary.source().join("hidden/a/b/file"), large(1));
    primary.start();
    primary.settle();
    let backing = primary.backing();
    let root = mirrorfs::model::FileId::ROOT;
    let (old, new) = (std::ffi::OsStr::new("hidden"), std::ffi::OsStr::new("seen"));
    backing.rename(root, old, root, new, 0).expect("a rename");
    primary.settle();
    primary
        .backing()
        .rename(root, new, root, old, 0)
        .expect("a rename");
    primary.settle();
}

#[test]
fn another_file_system_in_the_tree_is_left_alone() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: only root can mount one");
    }
    let mut primary = Primary::new();
    let nested = primary.source().join("nested");
    fs::create_dir(&nested).expect("a directory");
    write(primary.source().join("beside"), "x");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("nested", &nested, "tmpfs", flags, None).expect("a tmpfs");
    write(nested.join("foreign"), "x");
    primary.start();
    primary.walk();
    primary.ship();
    let user = User(primary.backing());
    user.act(&Action::Directory(super::actions::Place::new(&[0])));
    let listed = primary
        .backing()
        .lookup(mirrorfs::model::FileId::ROOT, "nested".as_ref());
    let inside = listed.and_then(|nested| primary.backing().lookup(nested.id, "foreign".as_ref()));
    primary.walk();
    primary.ship();
    rustix::mount::unmount(&nested, rustix::mount::UnmountFlags::DETACH).expect("an unmount");
    assert_eq!(inside.expect("it can be used").size, 1);
    let mirrored: Vec<_> = primary.replica.tree().into_keys().collect();
    assert!(
        !mirrored.iter().any(|path| path.ends_with("foreign")),
        "{mirrored:?}"
    );
    assert!(
        mirrored.iter().any(|path| path.ends_with("beside")),
        "{mirrored:?}"
    );
}

// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        default.cases
    } else {
        24
    };
    ProptestConfig {
        cases,
        max_shrink_iters: 400,
        ..default
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_edits_while_nothing_is_mounted(
        rounds in prop::collection::vec(prop::collection::vec(action(), 0..30), 1..4),
    ) {
        let mut primary = Primary::new();
        for actions in rounds {
            for action in &actions {
                offline(&primary.source(), action);
            }
            primary.start();
            primary.settle();
            primary.stop();
        }
    }

    #[test]
    fn users_work_while_the_walk_goes_by(
        before in prop::collection::vec(action(), 0..40),
        first in prop::collection::vec(action(), 0..20),
        offline_edits in prop::collection::vec(action(), 0..30),
        live in prop::collection::vec((action(), 0u8..8), 0..60),
        crash in any::<bool>(),
    ) {
        let mut primary = Primary::new();
        let act = |primary: &Primary, actions: &[Action]| {
            actions.iter().for_each(|action| offline(&primary.source(), action));
        };
        act(&primary, &before);
        primary.start();
        first.iter().for_each(|action| User(primary.backing()).act(action));
        primary.settle();
        primary.stop();
        act(&primary, &offline_edits);
        primary.start();
        for (number, (action, ship)) in live.iter().enumerate() {
            User(primary.backing()).act(action);
            if *ship == 0 {
                primary.ship();
            }
            if crash && number == live.len() / 2 {
                primary.stop();
                primary.start();
            }
        }
        primary.settle();
        primary.stop();
        // Nothing was forgotten in memory only.
        primary.start();
        primary.settle();
    }
}
