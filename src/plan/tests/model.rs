//! A replica in memory, written from the contract of the entries, not from the planner.

use crate::limits::BLOCK_BYTES;
use crate::model::{
    BlockHash, Body, Entry, Extent, FileId, Fixed, Fragment, Name, Object, Xattrs, blocks_of,
    hash_block,
};
use crate::plan::{Index, PlanError};
use std::collections::{BTreeMap, BTreeSet};

pub type Entries = Vec<(Entry, Vec<u8>)>;

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub objects: BTreeMap<FileId, Object>,
    pub content: BTreeMap<FileId, Vec<u8>>,
    pub names: BTreeMap<(FileId, Name), FileId>,
    pub hashes: BTreeMap<(FileId, u64), BlockHash>,
}

impl Model {
    pub fn new() -> Model {
        let root = Object {
            fixed: Fixed::Directory,
            attributes: Default::default(),
            size: 0,
            xattrs: Xattrs::new(),
        };
        Model {
            objects: BTreeMap::from([(FileId::ROOT, root)]),
            ..Model::default()
        }
    }

    pub fn apply(&mut self, entries: &Entries) {
        let before = self.clone();
        for (entry, bytes) in entries {
            assert!(entry.is_valid(), "{entry:?}");
            match entry {
                Entry::Fragment(fragment) => self.fragment(fragment, bytes, &before),
                Entry::Object { id, object } => {
                    self.objects.insert(*id, object.clone());
                }
                Entry::Binding {
                    parent,
                    name,
                    object,
                } => {
                    let key = (*parent, name.clone());
                    match object {
                        Some(id) => self.names.insert(key, *id),
                        None => self.names.remove(&key),
                    };
                }
            }
        }
        self.drop_what_has_no_name();
        for ((parent, _), id) in &self.names {
            assert!(self.objects.contains_key(parent) && self.objects.contains_key(id));
        }
        for (id, object) in &self.objects {
            if object.fixed.is_file() {
                self.content
                    .entry(*id)
                    .or_default()
                    .resize(object.size as usize, 0);
            }
        }
        self.check_hashes();
    }

    fn fragment(&mut self, fragment: &Fragment, bytes: &[u8], before: &Model) {
        let extent = fragment.extent;
        let (start, end) = (extent.offset as usize, extent.end() as usize);
        let content = self.content.entry(fragment.file).or_default();
        // Holes that reach far behind the end change nothing.
        let end = if fragment.body == Body::Hole {
            end.min(content.len())
        } else {
            end
        };
        if content.len() < end {
            content.resize(end, 0);
        }
        if start < end {
            let target = &mut content[start..end];
            match fragment.body {
                Body::Bytes => target.copy_from_slice(bytes),
                Body::Hole => target.fill(0),
                Body::Copy { from, offset } => {
                    let from = &before.content[&from][offset as usize..];
                    target.copy_from_slice(&from[..extent.length as usize]);
                }
            }
        }
        if fragment.blocks.is_empty() {
            let file = fragment.file;
            let blocks = blocks_of(extent);
            let range = (file, blocks.start)..(file, blocks.end);
            let zeroed: Vec<_> = self.hashes.range(range).map(|(key, _)| *key).collect();
            for key in zeroed {
                self.hashes.remove(&key);
            }
        } else {
            for (block, hash) in blocks_of(extent).zip(&fragment.blocks) {
                self.hashes.insert((fragment.file, block), *hash);
            }
        }
    }

    fn drop_what_has_no_name(&mut self) {
        loop {
            let named: BTreeSet<FileId> = self.names.values().copied().collect();
            let alive = |id: &FileId| *id == FileId::ROOT || named.contains(id);
            let objects = self.objects.len();
            self.objects.retain(|id, _| alive(id));
            self.content.retain(|id, _| alive(id));
            self.hashes.retain(|(id, _), _| alive(id));
            self.names.retain(|(parent, _), _| alive(parent));
            if self.objects.len() == objects {
                return;
            }
        }
    }

    fn check_hashes(&mut self) {
        let content = &self.content;
        self.hashes.retain(|(id, block), hash| {
            *hash != BlockHash::ZERO && (*block * BLOCK_BYTES) < content[id].len() as u64
        });
        for (id, content) in &self.content {
            for (block, bytes) in content.chunks(BLOCK_BYTES as usize).enumerate() {
                let held = self.hashes.get(&(*id, block as u64));
                let held = held.copied().unwrap_or(BlockHash::ZERO);
                assert_eq!(held, hash_block(bytes), "block {block} of {id}");
            }
        }
    }
}

impl Index for Model {
    fn object(&self, id: FileId) -> Result<Option<Object>, PlanError> {
        Ok(self.objects.get(&id).cloned())
    }

    fn blocks(&self, id: FileId, first: u64, count: u64) -> Result<Vec<BlockHash>, PlanError> {
        let hash = |block| {
            self.hashes
                .get(&(id, block))
                .copied()
                .unwrap_or(BlockHash::ZERO)
        };
        Ok((first..first + count).map(hash).collect())
    }

    fn child(&self, parent: FileId, name: &Name) -> Result<Option<FileId>, PlanError> {
        Ok(self.names.get(&(parent, name.clone())).copied())
    }

    fn children(&self, parent: FileId, max: usize) -> Result<Vec<(Name, FileId)>, PlanError> {
        let within = self
            .names
            .iter()
            .filter(|((directory, _), _)| *directory == parent);
        let named = within.map(|((_, name), object)| (name.clone(), *object));
        Ok(named.take(max).collect())
    }

    fn links(&self, id: FileId, max: usize) -> Result<Vec<(FileId, Name)>, PlanError> {
        let named = self.names.iter().filter(|(_, object)| **object == id);
        Ok(named.map(|(key, _)| key.clone()).take(max).collect())
    }
}

/// What is sent for these entries, frames and all.
pub fn wire_bytes(entries: &Entries) -> usize {
    let mut out = Vec::new();
    for (sequence, (entry, bytes)) in (0..).zip(entries) {
        let message = crate::wire::ToReplica::Stage {
            sequence,
            entry: entry.clone(),
        };
        crate::wire::encode(&message, Some(bytes), &mut out).expect("a good message");
    }
    out.len()
}

/// The bytes of an extent of a file, for comparisons.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

pub fn fragments(entries: &Entries) -> Vec<(Extent, Body)> {
    let fragment = |(entry, _): &(Entry, Vec<u8>)| match entry {
        Entry::Fragment(fragment) => Some((fragment.extent, fragment.body)),
        _ => None,
    };
    entries.iter().filter_map(fragment).collect()
}
