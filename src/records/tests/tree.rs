//! Records against a plain tree in memory.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

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
