use super::model::noise;
use super::world::{World, name};
use crate::model::{Entry, FileId};

#[test]
fn what_is_born_and_gone_is_not_shipped() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 5000));
    world.bind(FileId::ROOT, "f", None);
    let staged = world.create("g", &noise(2, 500_000));
    world.stage(staged);
    world.bind(FileId::ROOT, "g", None);
    let (planned, entries) = world.ship();
    assert_eq!(planned.tally.entries, 0);
    assert_eq!(planned.strangers, 0);
    assert_eq!(entries.len(), 1);
    assert!(planned.stamps.is_empty() && !world.replica.objects.contains_key(&file));
    world.compare();
}

#[test]
fn a_stranger_is_counted_and_not_shipped() {
    let mut world = World::new();
    let file = world.create("f", b"x");
    world.bind(FileId::ROOT, "f", None);
    world.change(file).new = false;
    // A name in a directory that nobody knows is none.
    let there = FileId(900);
    world.bind(there, "g", Some(FileId(901)));
    world.change(FileId(901)).attributes = true;
    let (planned, entries) = world.ship();
    assert_eq!((planned.strangers, entries.len()), (3, 0));
}

#[test]
fn a_name_whose_object_is_not_said_to_be_new_is_shipped_with_it() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 100_000));
    let mut sealed = world.seal();
    sealed.changes.remove(&file);
    let (planned, _) = world.ship_sealed(&sealed, |_, _| ());
    assert_eq!(planned.tally.bytes_emitted, 100_000);
    world.compare();
}

#[test]
fn a_rename_of_a_directory_is_two_names() {
    let mut world = World::new();
    let directory = world.create_directory(FileId::ROOT, "d");
    let inner = world.create_directory(directory, "e");
    let file = world.create("f", &noise(1, 9000));
    world.bind(FileId::ROOT, "f", None);
    world.bind(inner, "f", Some(file));
    world.ship();
    world.compare();
    world.rename("d", "d2");
    let (planned, entries) = world.ship();
    let names = entries
        .iter()
        .filter(|(entry, _)| matches!(entry, Entry::Binding { .. }))
        .count();
    assert_eq!((names, planned.tally.bytes_read), (2, 0));
    world.compare();
    // Nothing has changed: nothing is said.
    world.bind(FileId::ROOT, "d2", Some(directory));
    assert_eq!(world.ship().0.tally.entries, 0);
}

#[test]
fn what_is_in_a_directory_that_is_gone_is_gone_unless_it_has_another_name() {
    let mut world = World::new();
    let directory = world.create_directory(FileId::ROOT, "d");
    let inner = world.create_directory(directory, "e");
    let (lost, kept) = (world.create("l", b"lost"), world.create("k", b"kept"));
    for (text, id) in [("l", lost), ("k", kept)] {
        world.bind(FileId::ROOT, text, None);
        world.bind(inner, text, Some(id));
    }
    world.ship();
    // Both are written to; then the directory leaves the tree, as by a rename to where nothing is
    // mirrored, and one of the files has got another name.
    world.write(lost, 0, b"x");
    world.write(kept, 0, b"y");
    world.bind(FileId::ROOT, "k2", Some(kept));
    world.bind(FileId::ROOT, "d", None);
    world.names.retain(|(parent, _), _| *parent == FileId::ROOT);
    let (planned, _) = world.ship();
    assert_eq!(planned.tally.bytes_emitted, 1);
    assert_eq!(world.replica.names.len(), 1);
    world.compare();
}

#[test]
fn names_are_exchanged_without_a_byte() {
    let mut world = World::new();
    let (a, b) = (world.create("a", b"1"), world.create("b", b"2"));
    world.ship();
    world.bind(FileId::ROOT, "a", Some(b));
    world.bind(FileId::ROOT, "b", Some(a));
    let (planned, _) = world.ship();
    assert_eq!((planned.tally.entries, planned.tally.bytes_read), (2, 0));
    world.compare();
}

#[test]
fn a_file_that_is_removed_after_the_seal_is_in_the_epoch() {
    let mut world = World::new();
    let bytes = noise(1, 3 << 20);
    let (one, two) = (world.create("1", &bytes), world.create("2", &bytes[5..]));
    let sealed = world.seal();
    let mut gone = false;
    world.ship_sealed(&sealed, |world, sealed| {
        if !std::mem::replace(&mut gone, true) {
            sealed.write_after(world, one, 2_500_000, b"later");
            sealed.unlink_after(world, one);
            sealed.truncate_after(world, two, 10);
            sealed.unlink_after(world, two);
        }
    });
    assert!(world.replica.content[&one] == bytes && world.replica.content[&two] == bytes[5..]);
    assert_eq!(world.replica.names[&(FileId::ROOT, name("2"))], two);
}

#[test]
fn many_links_are_looked_through() {
    let mut world = World::new();
    let file = world.create("f", b"x");
    let names: Vec<String> = (0..40).map(|number| format!("n{number:02}")).collect();
    for text in &names {
        world.bind(FileId::ROOT, text, Some(file));
    }
    world.ship();
    for text in names
        .iter()
        .chain([&"f".to_owned()])
        .filter(|text| *text != "n39")
    {
        world.bind(FileId::ROOT, text, None);
    }
    world.write(file, 0, b"y");
    world.ship();
    assert_eq!(world.replica.names.len(), 1);
    world.compare();
}
