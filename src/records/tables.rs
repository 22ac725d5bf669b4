//! A transaction's tables and what it knows of their rows.

use super::State;
use super::error::Fault;
use super::row::name_hash;
use super::row::{BLOCKS, INODES, LINKS, LinkKey, NAMES, NameKey, OBJECTS, Row, Sum, block_hash};
use crate::limits::{EPOCH_OBJECTS_MAX, RECORDS_ROWS_MAX};
use crate::model::{BlockHash, FileId, Stamp};
use redb::{ReadableTable, Table, WriteTransaction};
use std::collections::HashMap;

type Result<T> = std::result::Result<T, Fault>;

/// What a change has done to an object, in bits.
pub(super) mod touch {
    /// It was there before.
    pub const KNOWN: u8 = 1;
    /// It got a name.
    pub const NAMED: u8 = 2;
    /// A name was bound in it.
    pub const PARENT: u8 = 4;
    /// Its state or its content was set.
    pub const CONTENT: u8 = 8;
    /// Everything, where it is not known what.
    pub const ANY: u8 = 15;
}

/// The objects that a change has touched, to be checked at its end.
#[derive(Debug)]
pub(super) enum Touched {
    /// These.
    Some(HashMap<u64, u8>),
    /// More than an epoch has (an import): all that there are.
    All,
}

/// The sums that a change keeps up to date, and rows that it has not written back. What a row in
/// `rows` adds to the sums is not in them.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) state: State,
    pub(super) root: Sum,
    pub(super) touched: Touched,
    rows: HashMap<u64, Row>,
}

/// What the end of a change asks of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) exists: bool,
    pub(super) is_directory: bool,
    pub(super) is_file: bool,
    pub(super) size: u64,
    pub(super) links: u32,
    pub(super) has_content: bool,
}

impl From<&Row> for Seen {
    fn from(row: &Row) -> Seen {
        let fixed = row.object.as_ref().map(|object| &object.fixed);
        Seen {
            exists: fixed.is_some(),
            is_directory: fixed.is_some_and(crate::model::Fixed::is_directory),
            is_file: fixed.is_some_and(crate::model::Fixed::is_file),
            size: row.object.as_ref().map_or(0, |object| object.size),
            links: row.links,
            has_content: !row.content.is_zero(),
        }
    }
}

/// The open tables of a transaction.
pub(super) struct Tables<'t> {
    pub(super) objects: Table<'t, u64, &'static [u8]>,
    pub(super) names: Table<'t, NameKey, u64>,
    pub(super) links: Table<'t, LinkKey, ()>,
    pub(super) blocks: Table<'t, (u64, u64), &'static [u8; 32]>,
    pub(super) inodes: Table<'t, u64, u64>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(write: &'t WriteTransaction) -> Result<Tables<'t>> {
        Ok(Tables {
            objects: write.open_table(OBJECTS)?,
            names: write.open_table(NAMES)?,
            links: write.open_table(LINKS)?,
            blocks: write.open_table(BLOCKS)?,
            inodes: write.open_table(INODES)?,
        })
    }
}

impl Work {
    pub(super) fn new(state: State) -> Work {
        Work {
            root: Sum::of(state.root_hash),
            state,
            touched: Touched::Some(HashMap::new()),
            rows: HashMap::new(),
        }
    }

    /// A row to be changed; a new one if there is none. Notes that it is touched, if a bit of
    /// `bits` says so.
    pub(super) fn row(
        &mut self,
        tables: &mut Tables<'_>,
        id: FileId,
        bits: u8,
    ) -> Result<&mut Row> {
        if self.rows.len() >= RECORDS_ROWS_MAX && !self.rows.contains_key(&id.0) {
            self.write_back(tables)?;
        }
        let mut known = self.rows.contains_key(&id.0);
        if !known {
            let row = tables
                .objects
                .get(id.0)?
                .map(|bytes| Row::decode(bytes.value()));
            let row = row.transpose()?;
            known = row.is_some();
            let row = row.unwrap_or_default();
            if let (Some(object), Some(hash)) = (&row.object, row.hash(id)?) {
                self.root.subtract(hash);
                self.state.objects = self.state.objects.saturating_sub(1);
                self.state.bytes = self.state.bytes.saturating_sub(object.size);
            }
            self.rows.insert(id.0, row);
        }
        if bits != 0 {
            self.touch(id, bits, known);
        }
        self.state.highest_id = self.state.highest_id.max(id);
        self.rows.get_mut(&id.0).ok_or(Fault::Row("a row vanished"))
    }

    fn touch(&mut self, id: FileId, bits: u8, known: bool) {
        let Touched::Some(touched) = &mut self.touched else {
            return;
        };
        // The first touch tells whether the object was there before the change.
        let known = if known { touch::KNOWN } else { 0 };
        *touched.entry(id.0).or_insert(known) |= bits;
        if touched.len() > EPOCH_OBJECTS_MAX {
            self.touched = Touched::All;
        }
    }

    /// What a row says now.
    pub(super) fn peek(&self, tables: &Tables<'_>, id: FileId) -> Result<Option<Seen>> {
        if let Some(row) = self.rows.get(&id.0) {
            return Ok(Some(row.into()));
        }
        let Some(bytes) = tables.objects.get(id.0)? else {
            return Ok(None);
        };
        Ok(Some((&Row::decode(bytes.value())?).into()))
    }

    /// What the change did to an object, as far as that is known.
    pub(super) fn bits(&self, id: FileId) -> u8 {
        match &self.touched {
            Touched::Some(touched) => touched.get(&id.0).copied().unwrap_or(touch::KNOWN),
            Touched::All => touch::ANY,
        }
    }

    /// Writes all rows to their table.
    pub(super) fn write_back(&mut self, tables: &mut Tables<'_>) -> Result<()> {
        let mut rows: Vec<(u64, Row)> = self.rows.drain().collect();
        rows.sort_unstable_by_key(|(id, _)| *id);
        for (id, row) in rows {
            if let (Some(object), Some(hash)) = (&row.object, row.hash(FileId(id))?) {
                self.root.add(hash);
                self.state.objects += 1;
                self.state.bytes = self.state.bytes.saturating_add(object.size);
            }
            tables.objects.insert(id, &row.encode()?[..])?;
        }
        Ok(())
    }

    /// Removes an object that has no name left, and its blocks. Its names must be gone.
    pub(super) fn remove(&mut self, tables: &mut Tables<'_>, id: FileId) -> Result<()> {
        let row = self.row(tables, id, 0)?;
        let stamp = row.stamp;
        if !row.content.is_zero() {
            tables
                .blocks
                .retain_in((id.0, 0)..=(id.0, u64::MAX), |_, _| false)?;
        }
        hint(&mut tables.inodes, id, &stamp, &Stamp::default())?;
        self.rows.remove(&id.0);
        tables.objects.remove(id.0)?;
        Ok(())
    }

    /// Binds a name, or unbinds it.
    pub(super) fn bind(
        &mut self,
        tables: &mut Tables<'_>,
        parent: FileId,
        name: &[u8],
        object: Option<FileId>,
    ) -> Result<()> {
        let key = (parent.0, name);
        let held = tables.names.get(key)?.map(|id| FileId(id.value()));
        if let Some(id) = object {
            // Said again or not, both ends are to be checked.
            self.row(tables, parent, touch::PARENT)?;
            self.row(tables, id, touch::NAMED)?;
        }
        if held == object {
            return Ok(());
        }
        if held.is_some() {
            self.unbind(tables, parent, name, touch::NAMED)?;
        }
        if let Some(id) = object {
            tables.names.insert(key, id.0)?;
            tables.links.insert((id.0, parent.0, name), ())?;
            self.root.add(name_hash(parent.0, name, id.0));
            self.state.names += 1;
            let row = self.row(tables, id, touch::NAMED)?;
            row.links = row.links.saturating_add(1);
        }
        Ok(())
    }

    /// Removes a name; answers how many are left of the object it held.
    pub(super) fn unbind(
        &mut self,
        tables: &mut Tables<'_>,
        parent: FileId,
        name: &[u8],
        bits: u8,
    ) -> Result<Option<u32>> {
        let held = tables
            .names
            .remove((parent.0, name))?
            .map(|id| FileId(id.value()));
        let Some(id) = held else { return Ok(None) };
        tables.links.remove((id.0, parent.0, name))?;
        self.root.subtract(name_hash(parent.0, name, id.0));
        self.state.names = self.state.names.saturating_sub(1);
        let row = self.row(tables, id, bits)?;
        row.links = row.links.saturating_sub(1);
        Ok(Some(row.links))
    }

    /// Sets the hash of one block.
    pub(super) fn block(
        &mut self,
        tables: &mut Tables<'_>,
        id: FileId,
        block: u64,
        hash: BlockHash,
    ) -> Result<()> {
        let row = self.row(tables, id, touch::CONTENT)?;
        let held = if hash == BlockHash::ZERO {
            tables.blocks.remove((id.0, block))?
        } else {
            row.content.add(block_hash(block, hash));
            tables.blocks.insert((id.0, block), &hash.0)?
        };
        if let Some(held) = held {
            row.content
                .subtract(block_hash(block, BlockHash(*held.value())));
        }
        Ok(())
    }

    /// Makes the blocks from `first` to before `end` zeros.
    pub(super) fn drop_blocks(
        &mut self,
        tables: &mut Tables<'_>,
        id: FileId,
        first: u64,
        end: u64,
    ) -> Result<()> {
        let content = &mut self.row(tables, id, touch::CONTENT)?.content;
        let some = tables
            .blocks
            .range((id.0, first)..(id.0, end.max(first)))?
            .next();
        if some.transpose()?.is_some() {
            tables
                .blocks
                .retain_in((id.0, first)..(id.0, end), |(_, block), hash| {
                    content.subtract(block_hash(block, BlockHash(*hash)));
                    false
                })?;
        }
        Ok(())
    }
}

/// Notes that `id` is now where `stamp` says.
pub(super) fn hint(
    inodes: &mut Table<'_, u64, u64>,
    id: FileId,
    before: &Stamp,
    stamp: &Stamp,
) -> Result<()> {
    if before.inode != stamp.inode && before.inode != 0 {
        let held = inodes.get(before.inode)?.map(|held| held.value());
        if held == Some(id.0) {
            inodes.remove(before.inode)?;
        }
    }
    if stamp.inode != 0 {
        inodes.insert(stamp.inode, id.0)?;
    }
    Ok(())
}
