//! All rows of the records, as another side takes them in.

use super::error::{Fault, Result};
use super::row::{BLOCKS, NAMES, OBJECTS, Row};
use super::store::{self, Store};
use super::{State, decode_name};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::model::{BlockHash, FileId, Name};
use crate::wire::RecordItem;
use redb::ReadTransaction;
use std::ops::Bound;

/// How many hashes one item has. More is possible; this is large enough to be cheap.
const HASHES_MAX: usize = 1024;

/// Where an export is. It sees the records as they were at its first call, and keeps the pages of
/// that state from being reused until it is dropped.
#[derive(Default)]
pub struct Cursor {
    snapshot: Option<(ReadTransaction, State)>,
    at: At,
}

#[derive(Clone, Debug, Default)]
enum At {
    #[default]
    Start,
    Objects(u64),
    Names(u64, Name),
    Blocks(u64, u64),
    End,
}

impl Cursor {
    /// What is being exported; `None` before the first call.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.snapshot.as_ref().map(|(_, state)| *state)
    }

    pub(super) fn next(&mut self, store: &Store, max: usize) -> Result<Vec<RecordItem>> {
        let (read, state) = match self.snapshot.take() {
            Some(snapshot) => snapshot,
            None => {
                let read = store.begin_read()?;
                let state = store.guard(|| store::state(&read))?;
                (read, state)
            }
        };
        let mut page = Page {
            items: Vec::new(),
            weight: 0,
            max: max.max(1),
        };
        let at = store.guard(|| page.fill(&read, self.at.clone()))?;
        self.at = at;
        self.snapshot = Some((read, state));
        Ok(page.items)
    }
}

struct Page {
    items: Vec<RecordItem>,
    weight: usize,
    max: usize,
}

impl Page {
    /// Takes the item unless the page is full.
    fn push(&mut self, item: RecordItem) -> bool {
        let weight = item.weight();
        let full = self.items.len() >= self.max || self.weight + weight > MESSAGE_BYTES_MAX;
        if full && !self.items.is_empty() {
            return false;
        }
        self.weight += weight;
        self.items.push(item);
        true
    }

    fn fill(&mut self, read: &ReadTransaction, mut at: At) -> std::result::Result<At, Fault> {
        loop {
            let (now, full) = match at {
                At::Start => self.objects(read, Bound::Unbounded, At::Start)?,
                At::Objects(after) => self.objects(read, Bound::Excluded(after), at)?,
                At::Names(parent, ref name) => {
                    let name = name.clone();
                    self.names(read, Bound::Excluded((parent, name.as_bytes())), at)?
                }
                At::Blocks(file, next) => self.blocks(read, (file, next))?,
                At::End => return Ok(At::End),
            };
            if full {
                return Ok(now);
            }
            at = now;
        }
    }

    fn objects(
        &mut self,
        read: &ReadTransaction,
        after: Bound<u64>,
        mut at: At,
    ) -> std::result::Result<(At, bool), Fault> {
        let objects = read.open_table(OBJECTS)?;
        for row in objects.range::<u64>((after, Bound::Unbounded))? {
            let (id, row) = row?;
            let object = Row::decode(row.value())?.object;
            let object = object.ok_or(Fault::Row("an object without a state"))?;
            if !self.push(RecordItem::Object {
                id: FileId(id.value()),
                object,
            }) {
                return Ok((at, true));
            }
            at = At::Objects(id.value());
        }
        self.names(read, Bound::Unbounded, at)
    }

    fn names(
        &mut self,
        read: &ReadTransaction,
        after: Bound<(u64, &[u8])>,
        mut at: At,
    ) -> std::result::Result<(At, bool), Fault> {
        let names = read.open_table(NAMES)?;
        for row in names.range((after, Bound::Unbounded))? {
            let (key, id) = row?;
            let (parent, name) = key.value();
            let name = decode_name(name)?;
            let item = RecordItem::Binding {
                parent: FileId(parent),
                name: name.clone(),
                object: FileId(id.value()),
            };
            if !self.push(item) {
                return Ok((at, true));
            }
            at = At::Names(parent, name);
        }
        Ok((At::Blocks(0, 0), false))
    }

    fn blocks(
        &mut self,
        read: &ReadTransaction,
        from: (u64, u64),
    ) -> std::result::Result<(At, bool), Fault> {
        let blocks = read.open_table(BLOCKS)?;
        let mut run: Option<(u64, u64, Vec<BlockHash>)> = None;
        for row in blocks.range(from..)? {
            let (key, hash) = row?;
            let (file, block) = key.value();
            let hash = BlockHash(*hash.value());
            match &mut run {
                Some((of, first, hashes))
                    if *of == file
                        && *first + hashes.len() as u64 == block
                        && hashes.len() < HASHES_MAX =>
                {
                    hashes.push(hash);
                }
                run => {
                    if let Some((file, first, hashes)) = run.replace((file, block, vec![hash]))
                        && !self.push_blocks(file, first, hashes)
                    {
                        return Ok((At::Blocks(file, first), true));
                    }
                }
            }
        }
        if let Some((file, first, hashes)) = run
            && !self.push_blocks(file, first, hashes)
        {
            return Ok((At::Blocks(file, first), true));
        }
        Ok((At::End, false))
    }

    fn push_blocks(&mut self, file: u64, first: u64, hashes: Vec<BlockHash>) -> bool {
        self.push(RecordItem::Blocks {
            file: FileId(file),
            first,
            hashes,
        })
    }
}
