//! A sealed epoch becomes entries.

use super::content::Content;
use super::names::Names;
use super::relative;
use super::{Against, Base, Emit, EpochView, Index, PlanError, Planned, Planner, Source, Tally};
use crate::disk::{self, Snapshot};
use crate::journal::ChangeView;
use crate::limits::BLOCK_BYTES;
use crate::model::{Entry, Extent, ExtentSet, FileId, Name, Object, Stamp, Timestamp};
use std::fs::File;
use std::io;

/// How often an object is looked for while others rename it to and fro.
const ATTEMPTS_MAX: usize = 64;

/// How many times larger than what is dirty a file may be that is read for a delta.
pub(super) const BASE_FACTOR_MAX: u64 = 16;

pub(super) struct Epoch<'a, 'e> {
    sealed: &'a dyn EpochView,
    pub(super) source: &'a dyn Source,
    pub(super) index: &'a dyn Index,
    emit: &'a mut Emit<'e>,
    planned: Planned,
    // a name of the object that is being planned
    name: Option<(FileId, Name)>,
}

impl Planner {
    /// Plans a sealed epoch: what it changes and the replica does not yet hold, with what is
    /// staged of it. The caller ends it with a commit, and says later whether it was
    /// [`Planner::committed`] or [`Planner::abandoned`].
    ///
    /// # Errors
    /// When the real tree, what was saved of it, or the index cannot be read, or `emit` fails.
    /// The epoch is then to be abandoned.
    pub fn epoch(
        &mut self,
        sealed: &dyn EpochView,
        source: &dyn Source,
        index: &dyn Index,
        emit: &mut Emit<'_>,
    ) -> Result<Planned, PlanError> {
        let mut names = Names::new(sealed, index)?;
        let mut objects = sealed.objects();
        // A name of something that is new without being said to be: all of it is dirty.
        for id in names.targets() {
            if objects.binary_search(&id).is_err() && index.object(id)?.is_none() {
                objects.push(id);
            }
        }
        objects.sort_unstable();
        objects.dedup();
        let mut epoch = Epoch {
            sealed,
            source,
            index,
            emit,
            planned: Planned::default(),
            name: None,
        };
        for id in objects {
            let change = sealed.change(id).unwrap_or_default();
            let known = index.object(id)?;
            if names.is_alive(id)? {
                let young = change.new || self.young.has(id);
                epoch.name = if young { names.of_few(id)? } else { None };
                self.object(&mut epoch, id, &change, known)?;
            } else if known.is_none() && !change.new {
                epoch.planned.strangers += 1;
            }
        }
        epoch.bindings(names)?;
        self.held.sealed();
        Ok(epoch.planned)
    }

    fn object(
        &mut self,
        epoch: &mut Epoch<'_, '_>,
        id: FileId,
        change: &ChangeView,
        known: Option<Object>,
    ) -> Result<(), PlanError> {
        let now = disk::coarse_now();
        let is_new = change.new || known.is_none();
        // A write takes a file's capabilities away, and nobody says so.
        let capable = |known: &Object| known.xattrs.contains_key(&b"security.capability"[..]);
        let fully = is_new || change.xattrs || known.as_ref().is_some_and(capable);
        let mut snapshot = epoch.snapshot(id, fully)?;
        if let Some(known) = known.as_ref().filter(|_| !fully) {
            snapshot.object.xattrs.clone_from(&known.xattrs);
        }
        let mut emitted = 0;
        if snapshot.object.fixed.is_file() {
            if is_new {
                self.young.born(id);
            }
            let size = snapshot.object.size;
            let dirty = dirty(change, size, known.as_ref());
            // Nothing behind the end is read, so nothing but a cut end needs the file.
            let end = size.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
            if dirty.overlaps(Extent::between(0, end)).next().is_some() {
                let replaced = change.replaced.filter(|_| self.young.has(id));
                let known_size = known.as_ref().map(|known| known.size);
                emitted = self.content(epoch, id, size, &dirty, replaced, known_size)?;
            }
        }
        let staged = !change.staged.is_empty() || self.held.has_staged(id);
        let stamp = settled(snapshot.stamp, now);
        if emitted > 0 || staged || known.as_ref() != Some(&snapshot.object) {
            let entry = Entry::Object {
                id,
                object: snapshot.object,
            };
            self.held.observe(&entry);
            epoch.emit(entry)?;
        }
        epoch.planned.stamps.push((id, stamp));
        Ok(())
    }

    // Returns how many entries the content took.
    fn content(
        &mut self,
        epoch: &mut Epoch<'_, '_>,
        id: FileId,
        size: u64,
        dirty: &ExtentSet,
        replaced: Option<FileId>,
        known: Option<u64>,
    ) -> Result<u64, PlanError> {
        let file = epoch.open(id)?;
        let mut base = None;
        let mut relative = None;
        if replaced.is_none() && self.young.has(id) {
            let name = epoch.name.take();
            let found = relative::find(epoch, id, name, size, dirty.bytes().min(size))?;
            let held = &self.held;
            if let Some((found, content)) = found.filter(|(found, _)| !held.has_staged(found.id)) {
                relative = Some(found);
                base = Some(content);
            }
        }
        let against = match (replaced, &mut base) {
            (Some(replaced), base) if !self.held.has_staged(replaced) => {
                epoch.against(replaced, dirty.bytes().min(size), base)?
            }
            (None, Some(base)) => Against::Content(base),
            _ => Against::Nothing,
        };
        let against_content = matches!(against, Against::Content(_));
        let mut content = Content {
            id,
            file: &file,
            size,
            dirty,
            known,
            index: epoch.index,
            held: &mut self.held,
            sealed: Some(epoch.sealed),
            buffer: &mut self.buffer,
            tally: Tally::default(),
            against,
        };
        content.plan(epoch.emit)?;
        // A base that was changed meanwhile has other bytes than the replica: what was copied
        // from it is overridden by the bytes themselves.
        let lost = |replaced| epoch.sealed.delta_base(replaced).is_none();
        content.against = Against::Nothing;
        let gone = match &relative {
            Some(relative) => !relative.holds(),
            None => against_content && replaced.is_some_and(lost),
        };
        if gone {
            content.plan(epoch.emit)?;
        }
        let tally = content.tally;
        if relative.is_some() && tally.bytes_copied == 0 {
            self.young.forget(id);
        }
        epoch.planned.tally.add(tally);
        epoch.sealed.read_done(id, Extent::new(0, u64::MAX));
        Ok(tally.entries)
    }
}

impl Epoch<'_, '_> {
    fn emit(&mut self, entry: Entry) -> Result<(), PlanError> {
        self.planned.tally.entries += 1;
        (self.emit)(entry, None).map_err(PlanError::Emit)
    }

    // What the names hold that they do not hold at the replica.
    fn bindings(&mut self, mut names: Names<'_>) -> Result<(), PlanError> {
        for binding in names.take_bindings() {
            // In a directory that is gone, nothing has a name. A name there that the replica
            // has needs no removal either, but it is told: another name may hold the object.
            let there = binding.after.is_none() || names.is_alive(binding.parent)?;
            if binding.before != binding.after && there {
                let (parent, name) = (binding.parent, binding.name);
                self.emit(Entry::Binding {
                    parent,
                    name,
                    object: binding.after,
                })?;
            }
        }
        Ok(())
    }

    // An object as it was at the seal. The live one counts only if nothing was saved after it was
    // looked at: whoever changes it saves first.
    fn snapshot(&self, id: FileId, fully: bool) -> Result<Snapshot, PlanError> {
        for _ in 0..ATTEMPTS_MAX {
            let live = if fully {
                self.source.snapshot(id)
            } else {
                self.source.look(id)
            };
            if let Some(saved) = self.sealed.saved_stat(id) {
                return Ok(saved);
            }
            match live {
                Ok(live) => return Ok(live),
                // It was removed, then its state is saved; or renamed, then look again.
                Err(error) if is_gone(&error) => std::thread::yield_now(),
                Err(source) => {
                    return Err(PlanError::Read {
                        file: id,
                        offset: 0,
                        source,
                    });
                }
            }
        }
        Err(PlanError::Lost { file: id })
    }

    fn open(&self, id: FileId) -> Result<File, PlanError> {
        for _ in 0..ATTEMPTS_MAX {
            if let Some(file) = self.sealed.saved_descriptor(id) {
                return Ok(file);
            }
            match self.source.open(id) {
                Ok(file) => return Ok(file),
                // It was unlinked, then its descriptor is saved; or renamed, then look again.
                Err(error) if is_gone(&error) => std::thread::yield_now(),
                Err(source) => {
                    return Err(PlanError::Read {
                        file: id,
                        offset: 0,
                        source,
                    });
                }
            }
        }
        Err(PlanError::Lost { file: id })
    }

    /// Whether the epoch changes the content of a file.
    pub(super) fn is_content_changed(&self, id: FileId) -> bool {
        let changed = |change: ChangeView| !change.dirty.is_empty() || !change.staged.is_empty();
        self.sealed.change(id).is_some_and(changed)
    }

    // What the new content of `dirty` bytes is compared with.
    fn against<'b>(
        &self,
        replaced: FileId,
        dirty: u64,
        base: &'b mut Option<Base>,
    ) -> Result<Against<'b>, PlanError> {
        let object = self
            .index
            .object(replaced)?
            .filter(|object| object.fixed.is_file());
        let Some(object) = object.filter(|_| !self.is_content_changed(replaced)) else {
            return Ok(Against::Nothing);
        };
        // To read a whole large file for a small one does not pay.
        if object.size / BASE_FACTOR_MAX <= dirty
            && let Some(file) = self.sealed.delta_base(replaced)
        {
            *base = Base::prepare(replaced, file, self.index)?;
        }
        Ok(match base {
            Some(base) => Against::Content(base),
            None => Against::Blocks(replaced),
        })
    }
}

// What of a file is to be read. Only what is dirty is preserved, so nothing else may be.
fn dirty(change: &ChangeView, size: u64, known: Option<&Object>) -> ExtentSet {
    let mut dirty: ExtentSet = change.dirty.iter().copied().collect();
    match known {
        // What is cut off within a block gives this block another hash.
        Some(known) if known.size > size && !size.is_multiple_of(BLOCK_BYTES) => {
            dirty.insert(Extent::new(size, BLOCK_BYTES - size % BLOCK_BYTES));
        }
        // Nobody said what of it there is; but it has a name, so it cannot be left out.
        None if !change.new => dirty.insert(Extent::between(0, size)),
        _ => {}
    }
    dirty
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESTALE)
}

// A stamp that a later change could have as well proves nothing.
fn settled(stamp: Stamp, now: Timestamp) -> Stamp {
    if disk::is_settled(&stamp, now) {
        stamp
    } else {
        Stamp {
            ctime: Timestamp::default(),
            ..stamp
        }
    }
}
