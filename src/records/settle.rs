//! The end of a change: what has no name is gone, and what remains must be a tree.

use super::error::Fault;
use super::tables::{Seen, Tables, Touched, Work, touch};
use crate::limits::BLOCK_BYTES;
use crate::model::FileId;
use redb::ReadableTable;
use std::collections::HashSet;
use std::ops::Bound;

type Result<T> = std::result::Result<T, Fault>;

/// How many rows are taken from a table before it is changed.
const BATCH: usize = 1024;

/// Settles what a change has touched; answers what is gone.
pub(super) fn settle(work: &mut Work, tables: &mut Tables<'_>) -> Result<Vec<FileId>> {
    if matches!(work.touched, Touched::All) {
        // They are found in the table.
        work.write_back(tables)?;
    }
    let mut gone = Vec::new();
    each_touched(work, tables, |work, tables, id, _| {
        let nameless = work.peek(tables, id)?.is_some_and(|row| row.links == 0);
        if nameless && id != FileId::ROOT {
            remove(work, tables, id, &mut gone)?;
        }
        Ok(())
    })?;
    let mut rooted = HashSet::from([FileId::ROOT.0]);
    each_touched(work, tables, |work, tables, id, bits| {
        if let Some(row) = work.peek(tables, id)? {
            check(work, tables, id, row, bits)?;
            if row.is_directory && bits & touch::NAMED != 0 {
                climb(tables, id, &mut rooted)?;
            }
        } else if bits & touch::PARENT != 0 {
            no_children(tables, id, "holds names and does not exist")?;
        }
        Ok(())
    })?;
    work.write_back(tables)?;
    Ok(gone)
}

/// Calls for every touched object, in order.
fn each_touched(
    work: &mut Work,
    tables: &mut Tables<'_>,
    mut call: impl FnMut(&mut Work, &mut Tables<'_>, FileId, u8) -> Result<()>,
) -> Result<()> {
    if let Touched::Some(touched) = &work.touched {
        let mut touched: Vec<(u64, u8)> = touched.iter().map(|(id, bits)| (*id, *bits)).collect();
        touched.sort_unstable();
        return touched
            .into_iter()
            .try_for_each(|(id, bits)| call(work, tables, FileId(id), bits));
    }
    let mut after = Bound::Unbounded;
    loop {
        let batch: Vec<u64> = tables
            .objects
            .range::<u64>((after, Bound::Unbounded))?
            .take(BATCH)
            .map(|row| Ok(row?.0.value()))
            .collect::<Result<_>>()?;
        let Some(&last) = batch.last() else {
            return Ok(());
        };
        after = Bound::Excluded(last);
        for id in batch {
            call(work, tables, FileId(id), touch::ANY)?;
        }
    }
}

/// Removes an object without a name, and what is only named in it.
fn remove(
    work: &mut Work,
    tables: &mut Tables<'_>,
    id: FileId,
    gone: &mut Vec<FileId>,
) -> Result<()> {
    let mut nameless = vec![id];
    while let Some(id) = nameless.pop() {
        let bits = work.bits(id);
        let is_directory = work.peek(tables, id)?.is_some_and(|row| row.is_directory);
        if !is_directory && bits & touch::PARENT != 0 {
            no_children(tables, id, "holds names and is no directory")?;
        }
        let mut more = is_directory;
        while more {
            let children = children(tables, id, BATCH)?;
            for (name, child) in &children {
                if work.unbind(tables, id, name, 0)? == Some(0) {
                    nameless.push(*child);
                }
            }
            more = children.len() == BATCH;
        }
        work.remove(tables, id)?;
        // One that came and went within the change was never there.
        if bits & touch::KNOWN != 0 {
            gone.push(id);
        }
    }
    Ok(())
}

/// Checks an object that remains, and cuts its blocks to its size.
fn check(work: &mut Work, tables: &mut Tables<'_>, id: FileId, row: Seen, bits: u8) -> Result<()> {
    if !row.exists {
        return Err(Fault::inconsistent(id, "is named and does not exist"));
    }
    if id == FileId::ROOT && !row.is_directory {
        return Err(Fault::inconsistent(id, "must be a directory"));
    }
    if row.is_directory && row.links > 1 {
        return Err(Fault::inconsistent(id, "is a directory with two names"));
    }
    if !row.is_directory && bits & touch::PARENT != 0 {
        no_children(tables, id, "holds names and is no directory")?;
    }
    if bits & touch::CONTENT == 0 || !row.has_content {
        return Ok(());
    }
    if !row.is_file {
        return Err(Fault::inconsistent(id, "has content and is no file"));
    }
    work.drop_blocks(tables, id, row.size.div_ceil(BLOCK_BYTES), u64::MAX)
}

/// Follows a directory's parents to the root. All that is in `rooted` is known to lead there.
fn climb(tables: &Tables<'_>, id: FileId, rooted: &mut HashSet<u64>) -> Result<()> {
    let mut passed = HashSet::new();
    let mut at = id.0;
    while !rooted.contains(&at) {
        if !passed.insert(at) {
            return Err(Fault::inconsistent(id, "is a directory below itself"));
        }
        let mut links = tables.links.range((at, 0, &[][..])..)?;
        let parent = match links.next() {
            Some(row) => Some(row?.0.value())
                .filter(|(of, ..)| *of == at)
                .map(|(_, up, _)| up),
            None => None,
        };
        at = parent.ok_or(Fault::inconsistent(id, "is not below the root"))?;
    }
    rooted.extend(passed);
    Ok(())
}

fn no_children(tables: &Tables<'_>, id: FileId, detail: &'static str) -> Result<()> {
    if children(tables, id, 1)?.is_empty() {
        return Ok(());
    }
    Err(Fault::inconsistent(id, detail))
}

fn children(tables: &Tables<'_>, id: FileId, max: usize) -> Result<Vec<(Vec<u8>, FileId)>> {
    let mut found = Vec::new();
    for row in tables.names.range((id.0, &[][..])..)?.take(max) {
        let (key, child) = row?;
        let (of, name) = key.value();
        if of != id.0 {
            break;
        }
        found.push((name.to_vec(), FileId(child.value())));
    }
    Ok(found)
}
