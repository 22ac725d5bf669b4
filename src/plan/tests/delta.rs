use super::model::{Entries, fragments, noise, wire_bytes};
use super::world::World;
use crate::model::{Body, FileId};
use crate::plan::{Against, Base, Planned};
use proptest::prelude::*;

// An editor saves a file by a rename over it.
fn replace(old: &[u8], new: &[u8], with_base: bool) -> (Planned, Entries) {
    let mut world = World::new();
    let base = world.create("f", old);
    world.ship();
    world.create("f.new", new);
    world.rename("f.new", "f");
    let sealed = world.seal();
    if with_base {
        sealed.offer_base(&world, base);
    }
    let shipped = world.ship_sealed(&sealed, |_, _| ());
    world.compare();
    assert!(!world.replica.objects.contains_key(&base));
    shipped
}

fn inserted(old: &[u8], at: usize, what: &[u8]) -> Vec<u8> {
    [&old[..at], what, &old[at..]].concat()
}

#[test]
fn an_insertion_near_the_start_costs_little() {
    let old = noise(1, 10 << 20);
    let new = inserted(&old, 5000, &noise(2, 100));
    let (planned, entries) = replace(&old, &new, true);
    assert!(wire_bytes(&entries) < 10 * 1024, "{}", wire_bytes(&entries));
    assert!(planned.tally.bytes_emitted < 300, "{:?}", planned.tally);
}

#[test]
fn many_edits_and_a_move_cost_little() {
    let old = noise(1, 3 << 20);
    let mut new = old.clone();
    new.rotate_left(1 << 20);
    for edit in 0..20 {
        new = inserted(&new, edit * 100_000 + 7, b"some words more");
        new.drain(edit * 100_000 + 50_000..edit * 100_000 + 50_100);
    }
    new.extend_from_slice(b"and an end");
    let (planned, entries) = replace(&old, &new, true);
    assert!(
        planned.tally.bytes_emitted < 40 * 4096,
        "{:?}",
        planned.tally
    );
    assert!(wire_bytes(&entries) < 200 * 1024);
}

#[test]
fn without_the_old_file_equal_blocks_are_copied() {
    let old = noise(1, 3 << 20);
    let mut new = old.clone();
    new[1_000_000..1_000_100].fill(b'x');
    new.extend_from_slice(b"longer");
    let (planned, entries) = replace(&old, &new, false);
    assert!(
        planned.tally.bytes_emitted <= 65_536 + 6,
        "{:?}",
        planned.tally
    );
    assert!(wire_bytes(&entries) < 70_000);
}

#[test]
fn what_has_nothing_in_common_is_shipped_whole() {
    for with_base in [true, false] {
        let (planned, entries) = replace(&noise(1, 1 << 20), &noise(2, 1 << 20), with_base);
        assert_eq!(planned.tally.bytes_copied, 0);
        assert_eq!(fragments(&entries).len(), 1);
    }
    // Too small to be worth anything.
    let (planned, _) = replace(b"hello", b"hello world", true);
    assert_eq!(planned.tally.bytes_emitted, 11);
}

#[test]
fn zeros_and_repetitions_are_no_trap() {
    let mut old = vec![0; 1 << 20];
    old[500_000..700_000].fill(7);
    let mut new = vec![7; 1 << 20];
    new[100_000..300_000].fill(0);
    new.extend(noise(3, 10_000));
    for with_base in [true, false] {
        replace(&old, &new, with_base);
        replace(&new, &old, with_base);
    }
}

#[test]
fn a_base_that_is_not_what_the_replica_holds_is_not_used() {
    let mut world = World::new();
    let id = world.create("f", &noise(1, 200_000));
    world.ship();
    let prepare = |world: &World, id| {
        Base::prepare(id, world.open_file(id), &world.replica)
            .expect("an index")
            .is_some()
    };
    assert!(prepare(&world, id));
    world.write(id, 150_000, b"x");
    assert!(!prepare(&world, id));
    world.ship();
    assert!(prepare(&world, id));
    world.truncate(id, 199_999);
    assert!(!prepare(&world, id) && !prepare(&world, FileId(2)));
}

#[test]
fn a_stage_uses_the_base_too_and_survives_its_change() {
    let mut world = World::new();
    let old = noise(1, 2 << 20);
    let id = world.create("f", &old);
    world.ship();
    let new = inserted(&old, 3000, b"inserted");
    let other = world.create("f.new", &new);
    world.rename("f.new", "f");
    let mut base = Base::prepare(id, world.open_file(id), &world.replica)
        .expect("an index")
        .expect("a base");
    let file = world.open_file(other);
    let extents = world.take_dirty(other);
    let mut staged = Vec::new();
    let index = &world.replica;
    let tally = world
        .planner
        .stage(
            other,
            &file,
            &extents,
            index,
            Against::Content(&mut base),
            &mut |entry, bytes| {
                staged.push((entry, bytes.unwrap_or_default().to_vec()));
                Ok(())
            },
        )
        .expect("staged");
    assert!(tally.bytes_emitted < 300, "{tally:?}");
    assert!(
        fragments(&staged)
            .iter()
            .any(|(_, body)| matches!(body, Body::Copy { .. }))
    );
    world.staged = staged;
    world.change(other).staged.push(extents[0]);
    let (planned, _) = world.ship();
    assert_eq!(planned.tally.bytes_read, 0);
    world.compare();
    // The base gets shorter while it is looked at: fewer copies, no wrong ones.
    let mut base = Base::prepare(other, world.open_file(other), &world.replica)
        .expect("an index")
        .expect("a base");
    world.open_file(other).set_len(1 << 20).expect("cut");
    let parts = base.divide(0, &new).expect("divided");
    let copied: u64 = parts
        .iter()
        .filter(|part| part.body != Body::Bytes)
        .map(|part| part.extent.length)
        .sum();
    assert!(copied <= 1 << 20);
}

#[test]
fn what_was_copied_from_a_base_that_changes_meanwhile_is_shipped_after_all() {
    let mut world = World::new();
    let old = noise(1, 3 << 20);
    let base = world.create("f", &old);
    world.ship();
    let new = inserted(&old, 5000, b"more");
    let file = world.create("f.new", &new);
    world.rename("f.new", "f");
    let sealed = world.seal();
    sealed.offer_base(&world, base);
    let (planned, _) = world.ship_sealed(&sealed, |_, sealed| sealed.lose_bases());
    assert!(planned.tally.bytes_copied > 0 && planned.tally.bytes_emitted > 3 << 20);
    assert!(world.replica.content[&file] == new);
    world.compare();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_two_versions_become_the_new_one(
        seed in 0u64..4, length in 0usize..400_000,
        cuts in prop::collection::vec((any::<prop::sample::Index>(), 0usize..30_000, 0u8..3), 0..12),
        with_base in any::<bool>(),
    ) {
        let old = noise(seed, length);
        let mut new = old.clone();
        for (at, count, kind) in cuts {
            let at = if new.is_empty() { 0 } else { at.index(new.len()) };
            let end = new.len().min(at + count);
            match kind {
                0 => new = inserted(&new, at, &noise(count as u64, count)),
                1 => { new.drain(at..end); }
                _ => new[at..end].fill(count as u8),
            }
        }
        replace(&old, &new, with_base);
    }
}
