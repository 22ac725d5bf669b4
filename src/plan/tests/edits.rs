use super::model::{fragments, noise, wire_bytes};
use super::world::World;
use crate::limits::BLOCK_BYTES;
use crate::model::{Body, Extent};
use proptest::prelude::*;

#[test]
fn one_page_of_a_large_file_reads_a_block_and_ships_a_page() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 16 << 20));
    let (first, _) = world.ship();
    assert_eq!(first.tally.bytes_read, 16 << 20);
    world.compare();
    world.write(file, (5 << 20) + 8192, &noise(2, 4096));
    let (planned, entries) = world.ship();
    assert_eq!(planned.tally.bytes_read, BLOCK_BYTES);
    assert_eq!(planned.tally.bytes_emitted, 4096);
    assert!(
        wire_bytes(&entries) < 4096 + 200,
        "{}",
        wire_bytes(&entries)
    );
    world.compare();
    // The same bytes again: read, and nothing else but the time.
    world.write(file, (5 << 20) + 8192, &noise(2, 4096));
    let (planned, entries) = world.ship();
    assert_eq!(
        (planned.tally.bytes_emitted, planned.tally.skipped_blocks),
        (0, 1)
    );
    assert!(fragments(&entries).is_empty() && entries.len() <= 1);
    world.compare();
}

#[test]
fn what_is_staged_is_not_read_again() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 3 << 20));
    assert_eq!(world.stage(file).bytes_emitted, 3 << 20);
    world.write(file, 100, b"again");
    let (planned, entries) = world.ship();
    assert_eq!(planned.tally.bytes_read, BLOCK_BYTES);
    assert_eq!(planned.tally.bytes_emitted, 5);
    assert_eq!(entries.len(), 3 + 1 + 2);
    world.compare();
}

#[test]
fn a_write_that_is_read_before_it_is_marked_is_shipped_when_it_is() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 100_000));
    world.ship();
    world.write(file, 0, b"marked");
    // Written, not yet marked, as between the system call and the dirty map.
    std::os::unix::fs::FileExt::write_all_at(&world.open_file(file), b"late", 500)
        .expect("written");
    world.stage(file);
    world.mark(file, Extent::new(500, 4));
    world.ship();
    world.compare();
}

#[test]
fn the_index_does_not_speak_for_what_is_on_its_way() {
    let mut world = World::new();
    let old = noise(1, 300_000);
    let file = world.create("f", &old);
    world.ship();
    // An epoch that is sent, but not yet in the index, cuts the file to nothing, ...
    let index = world.replica.clone();
    world.truncate(file, 0);
    world.ship();
    let committed = std::mem::replace(&mut world.replica, index);
    let mut planner = crate::plan::Planner::new();
    let mut held = |entry: &crate::model::Entry| planner.held.observe(entry);
    let object = committed.objects[&file].clone();
    held(&crate::model::Entry::Object { id: file, object });
    planner.held.sealed();
    world.planner = planner;
    // ... and what it had is written again.
    world.write(file, 0, &old);
    let tally = world.stage(file);
    assert_eq!(tally.bytes_emitted, 300_000);
    world.replica = committed;
    world.planner.committed();
    world.ship();
    world.compare();
}

#[test]
fn a_cut_end_gives_its_block_another_hash() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 200_000));
    world.ship();
    for size in [150_000, 131_072, 131_071, 65_536, 1, 100_000, 0, 5] {
        world.truncate(file, size);
        let (planned, _) = world.ship();
        assert_eq!(planned.tally.bytes_emitted, 0);
        world.compare();
    }
    world.write(file, 0, &noise(3, 100_000));
    world.ship();
    // Cut and extended within one epoch: zeros in between.
    world.truncate(file, 70_000);
    world.truncate(file, 100_000);
    world.ship();
    world.compare();
}

#[test]
fn holes_cost_nothing() {
    let mut world = World::new();
    let file = world.create("f", b"");
    world.truncate(file, 40 << 20);
    world.write(file, (20 << 20) + 5, b"island");
    let (planned, entries) = world.ship();
    assert_eq!(fragments(&entries).len(), 1);
    assert!(
        planned.tally.bytes_read <= 2 << 20,
        "{}",
        planned.tally.bytes_read
    );
    assert!(wire_bytes(&entries) < 1000);
    world.compare();
    // Zeros in a file that had something are a hole again.
    world.write(file, 0, &noise(4, 1 << 20));
    world.ship();
    world.write(file, 70_000, &vec![0; 900_000]);
    let (_, entries) = world.ship();
    let holes = fragments(&entries)
        .iter()
        .filter(|(_, body)| *body == Body::Hole)
        .count();
    assert_eq!(holes, 1);
    assert!(wire_bytes(&entries) < 1000);
    world.compare();
}

#[test]
fn a_huge_hole_is_punched_with_one_fragment() {
    use crate::plan::Against;
    let mut world = World::new();
    let file = world.create("f", &noise(1, 1 << 20));
    world.ship();
    let real = world.open_file(file);
    real.set_len(0).expect("cut");
    real.set_len(1 << 40).expect("extended");
    let mut entries = Vec::new();
    let whole = [Extent::new(0, 1 << 40)];
    let mut emit = |entry, _: Option<&[u8]>| {
        entries.push((entry, Vec::new()));
        Ok(())
    };
    let index = &world.replica;
    let staged = world
        .planner
        .stage(file, &real, &whole, index, Against::Nothing, &mut emit);
    assert_eq!(staged.expect("staged").bytes_read, 0);
    assert_eq!(fragments(&entries), [(Extent::new(0, 1 << 20), Body::Hole)]);
}

#[test]
fn close_extents_are_one_fragment_and_far_ones_are_not() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 1 << 20));
    world.ship();
    for at in [1000, 1100, 1200, 9000, 70_000] {
        world.write(file, at, b"0123456789");
    }
    let (planned, entries) = world.ship();
    let extents: Vec<Extent> = fragments(&entries)
        .into_iter()
        .map(|(extent, _)| extent)
        .collect();
    let expected = [(1000, 210), (9000, 10), (70_000, 10)].map(|(at, n)| Extent::new(at, n));
    assert_eq!(extents, expected);
    assert_eq!(planned.tally.bytes_read, 2 * BLOCK_BYTES);
    world.compare();
}

#[test]
fn an_unsettled_stamp_is_not_trusted() {
    let mut world = World::new();
    world.create("f", b"x");
    let (planned, _) = world.ship();
    let (_, stamp) = planned.stamps[0];
    assert!(stamp.inode != 0 && stamp.ctime == Default::default());
}

#[test]
fn what_is_cut_off_and_staged_is_not_back_when_the_file_grows() {
    let mut world = World::new();
    let file = world.create("f", &noise(1, 150_000));
    world.ship();
    world.truncate(file, 0);
    world.stage(file);
    world.write(file, 65_536, b"x");
    world.ship();
    world.compare();
}

#[derive(Clone, Debug)]
enum Edit {
    Write(usize, u64, usize, u64),
    Zero(usize, u64, usize),
    Truncate(usize, u64),
    Stage(usize),
    Ship(Vec<Edit>),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let offset = || prop_oneof![0u64..400_000, (0u64..6).prop_map(|n| n * BLOCK_BYTES)];
    let length = || prop_oneof![1usize..300, 1usize..200_000, Just(65_536usize)];
    let plain = prop_oneof![
        4 => (0usize..3, offset(), length(), 0u64..3).prop_map(|(f, o, l, s)| Edit::Write(f, o, l, s)),
        1 => (0usize..3, offset(), length()).prop_map(|(f, o, l)| Edit::Zero(f, o, l)),
        1 => (0usize..3, offset()).prop_map(|(f, size)| Edit::Truncate(f, size)),
    ];
    let meanwhile = prop::collection::vec(plain.clone(), 0..6);
    let edit = prop_oneof![
        6 => plain,
        2 => (0usize..3).prop_map(Edit::Stage),
        2 => meanwhile.prop_map(Edit::Ship),
    ];
    prop::collection::vec(edit, 1..25)
}

// The replica gets the content of the moment of the seal; what happens while the epoch is read
// is dirty in the next.
fn run(edits: Vec<Edit>) {
    let mut world = World::new();
    let files = ["a", "b", "c"].map(|text| world.create(text, &noise(9, 150_000)));
    for edit in edits.into_iter().chain([Edit::Ship(Vec::new())]) {
        match edit {
            Edit::Write(file, at, length, seed) => {
                world.write(files[file], at, &noise(seed, length))
            }
            Edit::Zero(file, at, length) => world.write(files[file], at, &vec![0; length]),
            Edit::Truncate(file, size) => world.truncate(files[file], size),
            Edit::Stage(file) => {
                world.stage(files[file]);
            }
            Edit::Ship(meanwhile) => {
                let at_seal = files.map(|file| world.read(file));
                let sealed = world.seal();
                let mut later = meanwhile.into_iter();
                let mut marks = Vec::new();
                world.ship_sealed(&sealed, |world, sealed| match later.next() {
                    Some(Edit::Write(file, at, length, seed)) => {
                        sealed.write_after(world, files[file], at, &noise(seed, length));
                        marks.push((files[file], Extent::new(at, length as u64)));
                    }
                    Some(Edit::Zero(file, at, length)) => {
                        sealed.write_after(world, files[file], at, &vec![0; length]);
                        marks.push((files[file], Extent::new(at, length as u64)));
                    }
                    Some(Edit::Truncate(file, size)) => {
                        let before = world.read(files[file]).len() as u64;
                        sealed.truncate_after(world, files[file], size);
                        marks.push((files[file], Extent::between(size, before)));
                    }
                    _ => {}
                });
                for (file, extent) in marks {
                    world.mark(file, extent);
                }
                for (file, content) in files.iter().zip(at_seal) {
                    assert!(world.replica.content[file] == content, "content of {file}");
                }
            }
        }
    }
    world.ship();
    world.compare();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn the_replica_holds_what_was_sealed(edits in edits()) {
        run(edits);
    }
}
