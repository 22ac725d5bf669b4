//! A model of a tree, random changes of it, and the epochs that they make.

use crate::limits::BLOCK_BYTES;
use crate::model::{
    Attributes, BlockHash, Body, Entry, Extent, FileId, Fixed, Fragment, Name, Object, Timestamp,
    Xattrs, hash_block,
};
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Enough randomness for a test, the same for the same seed.
#[derive(Clone)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % below.max(1) as u64) as usize
    }
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.roll(one_in) == 0
    }
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> Option<T> {
        let at = self.roll(of.len());
        of.get(at).cloned()
    }
}

#[derive(Clone, PartialEq, Debug)]
pub struct Thing {
    pub object: Object,
    pub content: Vec<u8>,
}

/// A tree.
#[derive(Clone, PartialEq, Debug)]
pub struct World {
    pub things: BTreeMap<FileId, Thing>,
    pub names: BTreeMap<(FileId, Name), FileId>,
    pub next: u64,
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub fn object(fixed: Fixed, dice: &mut Dice) -> Object {
    let private = [0o600, 0o644, 0o755, 0o4711, 0o400];
    Object {
        attributes: Attributes {
            mode: if fixed.is_directory() {
                [0o755, 0o700, 0o1777, 0o555][dice.roll(4)]
            } else if matches!(fixed, Fixed::Symlink(_)) {
                0o777
            } else {
                private[dice.roll(5)]
            },
            uid: 1000 * dice.roll(2) as u32,
            gid: 1000 * dice.roll(2) as u32,
            mtime: Timestamp {
                secs: 1_000_000 + dice.roll(1_000_000) as i64,
                nanos: dice.roll(1_000_000_000) as u32,
            },
        },
        fixed,
        size: 0,
        xattrs: Xattrs::new(),
    }
}

impl World {
    pub fn new() -> World {
        let mut dice = Dice(1);
        let mut root = object(Fixed::Directory, &mut dice);
        root.attributes.mode = 0o755;
        let thing = Thing {
            object: root,
            content: Vec::new(),
        };
        World {
            things: [(FileId::ROOT, thing)].into_iter().collect(),
            names: BTreeMap::new(),
            next: 2,
        }
    }

    fn of_kind(&self, directory: bool) -> Vec<FileId> {
        let things = self.things.iter();
        things
            .filter(|(_, thing)| thing.object.fixed.is_directory() == directory)
            .map(|(id, _)| *id)
            .collect()
    }

    fn within(&self, id: FileId, ancestor: FileId) -> bool {
        let mut at = id;
        loop {
            if at == ancestor {
                return true;
            }
            match self.names.iter().find(|(_, held)| **held == at) {
                Some(((parent, _), _)) => at = *parent,
                None => return false,
            }
        }
    }

    fn touch(&mut self, id: FileId, dice: &mut Dice) {
        if let Some(thing) = self.things.get_mut(&id) {
            thing.object.attributes.mtime.nanos = dice.roll(1_000_000_000) as u32;
        }
    }

    /// One random change.
    pub fn change(&mut self, dice: &mut Dice) {
        let parent = dice.pick(&self.of_kind(true)).expect("the root");
        let at = (parent, name(["a", "b", "c", "d", "e"][dice.roll(5)]));
        let spots: Vec<_> = self.names.keys().cloned().collect();
        match dice.roll(13) {
            0..=2 => self.create(at, dice),
            3 => {
                if let Some(id) = dice.pick(&self.of_kind(false)) {
                    self.names.insert(at, id);
                }
            }
            4..=6 => {
                if let Some(from) = dice.pick(&spots) {
                    self.rename(&from, at);
                }
            }
            7 => {
                if let (Some(one), Some(other)) = (dice.pick(&spots), dice.pick(&spots)) {
                    self.exchange(&one, &other);
                }
            }
            8 => {
                if let Some(spot) = dice.pick(&spots) {
                    self.names.remove(&spot);
                }
            }
            9..=11 => {
                if let Some(id) = dice.pick(&self.of_kind(false)) {
                    self.write(id, dice);
                }
            }
            _ => {
                let id = dice.pick(&self.things.keys().copied().collect::<Vec<_>>());
                let id = id.expect("the root");
                let thing = self.things.get_mut(&id).expect("picked");
                let fixed = thing.object.fixed.clone();
                let size = thing.object.size;
                thing.object = object(fixed, dice);
                thing.object.size = size;
                if dice.chance(2) && !matches!(thing.object.fixed, Fixed::Symlink(_)) {
                    thing
                        .object
                        .xattrs
                        .insert(b"user.x"[..].into(), b"1"[..].into());
                }
            }
        }
        self.collect();
        if dice.chance(2) {
            self.touch(parent, dice);
        }
    }

    fn create(&mut self, at: (FileId, Name), dice: &mut Dice) {
        let id = FileId(self.next);
        self.next += 1;
        let fixed = match dice.roll(8) {
            0..=2 => Fixed::Directory,
            3 => Fixed::Symlink(b"a/../b"[..].into()),
            4 if dice.chance(3) => Fixed::Fifo,
            _ => Fixed::File,
        };
        let thing = Thing {
            object: object(fixed, dice),
            content: Vec::new(),
        };
        self.things.insert(id, thing);
        self.names.insert(at, id);
        self.collect();
        if self.things.contains_key(&id) {
            self.write(id, dice);
        }
    }

    fn rename(&mut self, from: &(FileId, Name), to: (FileId, Name)) {
        let id = self.names[from];
        if self.within(to.0, id) || self.names.get(&to) == Some(&id) {
            return;
        }
        // What is replaced must not hold what is moved.
        if let Some(held) = self.names.get(&to)
            && self.within(from.0, *held)
        {
            return;
        }
        self.names.remove(from);
        self.names.insert(to, id);
    }

    fn exchange(&mut self, one: &(FileId, Name), other: &(FileId, Name)) {
        let (a, b) = (self.names[one], self.names[other]);
        if self.within(other.0, a) || self.within(one.0, b) {
            return;
        }
        self.names.insert(one.clone(), b);
        self.names.insert(other.clone(), a);
    }

    fn write(&mut self, id: FileId, dice: &mut Dice) {
        let Some(thing) = self.things.get_mut(&id) else {
            return;
        };
        if !thing.object.fixed.is_file() {
            return;
        }
        let content = &mut thing.content;
        match dice.roll(7) {
            0 => content.truncate(dice.roll(content.len() + 1)),
            1 => content.resize(content.len() + dice.roll(2 * BLOCK), 0),
            2 if dice.chance(8) => {
                let length = 17 * BLOCK + dice.roll(BLOCK);
                *content = (0..length).map(|at| (at / 777) as u8 | 1).collect();
            }
            3 if !content.is_empty() => {
                let start = dice.roll(content.len());
                let end = (start + 2 * BLOCK).min(content.len());
                content[start..end].fill(0);
            }
            4 if content.len() > 2 * BLOCK => content.rotate_left(BLOCK),
            _ => {
                let start = dice.roll(content.len() + 1);
                let most = [10, 5000, 3 * BLOCK][dice.roll(3)];
                let length = dice.roll(most);
                let fill = dice.roll(255) as u8 + 1;
                content.resize(content.len().max(start + length), 0);
                for (at, byte) in content[start..start + length].iter_mut().enumerate() {
                    *byte = fill ^ (at / 100) as u8;
                }
            }
        }
        thing.object.size = thing.content.len() as u64;
        self.touch(id, dice);
    }

    /// Forgets what no name leads to.
    pub fn collect(&mut self) {
        let mut live = BTreeSet::from([FileId::ROOT]);
        let mut left = vec![FileId::ROOT];
        while let Some(at) = left.pop() {
            for ((parent, _), id) in &self.names {
                if *parent == at && live.insert(*id) {
                    left.push(*id);
                }
            }
        }
        self.things.retain(|id, _| live.contains(id));
        self.names.retain(|(parent, _), _| live.contains(parent));
    }

    /// Entries that make `self` of `before`.
    pub fn epoch(&self, before: &World, dice: &mut Dice) -> Vec<(Entry, Vec<u8>)> {
        let mut entries = Vec::new();
        let touched: BTreeSet<_> = before.names.keys().chain(self.names.keys()).collect();
        for spot in touched {
            let new = self.names.get(spot).copied();
            if before.names.get(spot).copied() == new {
                continue;
            }
            // What goes with its directory need not be said.
            if !self.things.contains_key(&spot.0) && dice.chance(2) {
                continue;
            }
            let binding = Entry::Binding {
                parent: spot.0,
                name: spot.1.clone(),
                object: new,
            };
            entries.push((binding, Vec::new()));
        }
        for (id, thing) in &self.things {
            let old = before.things.get(id);
            if old != Some(thing) {
                let entry = Entry::Object {
                    id: *id,
                    object: thing.object.clone(),
                };
                entries.push((entry, Vec::new()));
            }
            let held = old.map_or(&[][..], |old| &old.content);
            self.fragments(*id, held, before, dice, &mut entries);
        }
        entries
    }

    fn fragments(
        &self,
        file: FileId,
        held: &[u8],
        before: &World,
        dice: &mut Dice,
        entries: &mut Vec<(Entry, Vec<u8>)>,
    ) {
        let content = &self.things[&file].content;
        // A large new file arrives in large pieces.
        let large = held.is_empty() && content.len() > 16 * BLOCK;
        let step = if large { 4 * BLOCK } else { BLOCK };
        for start in (0..content.len()).step_by(step) {
            let end = (start + step).min(content.len());
            let new = &content[start..end];
            let old = &held[start.min(held.len())..(start + step).min(held.len())];
            if trim(new) == trim(old) {
                continue;
            }
            let resent = dice.chance(6);
            if resent {
                // Something older, which is then sent again.
                let stale = vec![dice.roll(256) as u8; new.len()];
                entries.push(bytes(file, start, &stale, None));
            }
            let source = before.things.iter().find(|(_, thing)| {
                thing.content.len() >= end && thing.content.get(start..end) == Some(new)
            });
            let shifted = before
                .things
                .get(&file)
                .filter(|thing| thing.content.get(start + BLOCK..end + BLOCK) == Some(new));
            let entry = match (source, shifted) {
                _ if trim(new).is_empty() && new.len() == BLOCK => (hole(file, start), Vec::new()),
                (Some((from, _)), _) if dice.chance(2) => {
                    (copy(file, start, new, *from, start), Vec::new())
                }
                (_, Some(_)) => (copy(file, start, new, file, start + BLOCK), Vec::new()),
                _ => {
                    let first = new.iter().zip(old).position(|(a, b)| a != b);
                    let same_length = old.len() == new.len() && step == BLOCK && !resent;
                    match first.filter(|_| same_length && dice.chance(2)) {
                        Some(first) => bytes(file, start + first, &new[first..], Some(new)),
                        None => bytes(file, start, new, Some(new)),
                    }
                }
            };
            entries.push(entry);
        }
    }
}

fn trim(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    &bytes[..end]
}

pub fn hashes(bytes: &[u8]) -> Vec<BlockHash> {
    bytes.chunks(BLOCK).map(hash_block).collect()
}

/// `blocks`: the whole blocks that `piece` is the end of.
pub fn bytes(file: FileId, at: usize, piece: &[u8], blocks: Option<&[u8]>) -> (Entry, Vec<u8>) {
    let fragment = Fragment {
        file,
        extent: Extent::new(at as u64, piece.len() as u64),
        body: Body::Bytes,
        blocks: hashes(blocks.unwrap_or(piece)),
    };
    (Entry::Fragment(fragment), piece.to_vec())
}

fn hole(file: FileId, at: usize) -> Entry {
    Entry::Fragment(Fragment {
        file,
        extent: Extent::new(at as u64, BLOCK_BYTES),
        body: Body::Hole,
        blocks: Vec::new(),
    })
}

fn copy(file: FileId, at: usize, bytes: &[u8], from: FileId, offset: usize) -> Entry {
    Entry::Fragment(Fragment {
        file,
        extent: Extent::new(at as u64, bytes.len() as u64),
        body: Body::Copy {
            from,
            offset: offset as u64,
        },
        blocks: hashes(bytes),
    })
}
