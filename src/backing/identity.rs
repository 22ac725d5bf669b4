//! Which FileId an object of the real tree has: rule 1 of docs/architecture.md, in one place.

use super::reach::DEPTH_MAX;
use super::seen::Seen;
use super::{Backing, broken};
use crate::disk::{Place, look};
use crate::model::{FileId, Fixed, Name, Timestamp};
use crate::records::Record;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;

/// How many file systems below the root are told of.
const BORDERS_TOLD_MAX: usize = 64;

impl Backing {
    /// The id of what was seen under a name, and whether that name is not mirrored and no other
    /// of the object is known to be.
    ///
    /// First the node that the kernel knows; for what has several names, then another name's id;
    /// then what the known tree has under this name, if it can be that; then the index's hint;
    /// else a new one.
    pub(super) fn identify(
        &self,
        parent: FileId,
        name: &Name,
        seen: &Seen,
    ) -> io::Result<(FileId, bool)> {
        let excluded = self.excludes(parent, name, seen);
        if let Some(id) = self.nodes.find(seen) {
            return Ok((id, excluded));
        }
        if excluded && (seen.is_directory() || seen.links() < 2) {
            return Ok((self.journal.mint(), true));
        }
        let id = self.known_id(parent, name, seen)?;
        Ok((
            id.unwrap_or_else(|| self.journal.mint()),
            excluded && id.is_none(),
        ))
    }

    fn known_id(&self, parent: FileId, name: &Name, seen: &Seen) -> io::Result<Option<FileId>> {
        let many = !seen.is_directory() && seen.links() > 1;
        if many && let Some(id) = self.by_inode(parent, name, seen)? {
            return Ok(Some(id));
        }
        if let Some(id) = self.journal.known_child(parent, name).map_err(broken)? {
            // Not if it is the node of something else.
            let free = self.nodes.view(id).is_none();
            if free && self.can_be(id, parent, name, seen)? {
                return Ok(Some(id));
            }
        }
        if many {
            Ok(None)
        } else {
            self.by_inode(parent, name, seen)
        }
    }

    /// The object of the open or the sealed epoch, or of the index, with this inode.
    fn by_inode(&self, parent: FileId, name: &Name, seen: &Seen) -> io::Result<Option<FileId>> {
        if !seen.at_home {
            return Ok(None);
        }
        let inode = seen.stamp.inode;
        if let Some(id) = self.journal.overlay_by_inode(inode)
            && self.nodes.view(id).is_none()
            && self
                .journal
                .overlay_place(id)
                .is_none_or(|(_, birth)| birth == seen.stamp.birth)
        {
            return Ok(Some(id));
        }
        let Some(id) = self.index.by_inode(inode).map_err(broken)? else {
            return Ok(None);
        };
        if self.nodes.view(id).is_some() {
            return Ok(None);
        }
        let Some(record) = self.index.object(id).map_err(broken)? else {
            return Ok(None);
        };
        let same = record.stamp.inode == inode
            && self.same_life(&record, seen)
            && self.same_fixed(&record.object.fixed, parent, name, seen)?;
        Ok(same.then_some(id))
    }

    /// Whether what the known tree has under this name can be what is there.
    fn can_be(&self, id: FileId, parent: FileId, name: &Name, seen: &Seen) -> io::Result<bool> {
        if let Some(place) = self.journal.overlay_place(id) {
            return Ok(place == (seen.stamp.inode, seen.stamp.birth));
        }
        let Some(record) = self.index.object(id).map_err(broken)? else {
            return Ok(false);
        };
        // 0: records that came from a replica; the name is all there is to go by.
        let same = record.stamp.inode == 0 || record.stamp.inode == seen.stamp.inode;
        Ok(same && self.same_fixed(&record.object.fixed, parent, name, seen)?)
    }

    /// Born at the same instant; where the file system knows none, not touched since.
    fn same_life(&self, record: &Record, seen: &Seen) -> bool {
        if record.stamp.birth == Timestamp::default() || seen.stamp.birth == Timestamp::default() {
            return record.stamp.ctime == seen.stamp.ctime;
        }
        record.stamp.birth == seen.stamp.birth
    }

    fn same_fixed(
        &self,
        fixed: &Fixed,
        parent: FileId,
        name: &Name,
        seen: &Seen,
    ) -> io::Result<bool> {
        if !seen.may_be(fixed) {
            return Ok(false);
        }
        if !matches!(fixed, Fixed::Symlink(_)) {
            return Ok(true);
        }
        let directory = self.directory(parent)?;
        let found = look(Place::Entry(directory.as_fd(), name.as_os_str()))?;
        Ok(found.object.fixed == *fixed)
    }

    /// Whether what was seen under a name is not mirrored. Another file system that is mounted in
    /// the tree (or a subvolume) can be used, but is none of it: it may be the network, or larger
    /// than the replica, and its inodes mean nothing to the index. Only directories tell: of
    /// files, an overlay shows the device that they are stored on.
    pub(super) fn excludes(&self, parent: FileId, name: &Name, seen: &Seen) -> bool {
        if seen.is_directory() && !seen.at_home {
            self.meet_border(parent, name);
            return true;
        }
        self.name_excluded(parent, name, seen.is_directory())
    }

    /// Says it once for each.
    fn meet_border(&self, parent: FileId, name: &Name) {
        self.has_borders.store(true, Ordering::Release);
        let is_below_another = self.is_excluded(parent);
        let mut told = self.borders_told.lock();
        let place = (parent, name.clone());
        if !is_below_another && told.len() < BORDERS_TOLD_MAX && told.insert(place) {
            tracing::warn!(
                directory = %name,
                "another file system is mounted in the source; it can be used, but is not mirrored"
            );
        }
    }

    /// Whether a name is not mirrored; below a directory that has no way up from it in the known
    /// tree, nothing is.
    pub(super) fn name_excluded(&self, parent: FileId, name: &Name, is_directory: bool) -> bool {
        if self.exclude.is_empty() {
            // What is in another file system; all others pay nothing for it.
            return self.has_borders.load(Ordering::Acquire) && self.is_excluded(parent);
        }
        let mut parts = vec![name.clone()];
        let mut at = parent;
        while at != FileId::ROOT {
            if self.is_excluded(at) || parts.len() > DEPTH_MAX {
                return true;
            }
            let place = match self.nodes.place(at) {
                Some(place) => Some(place),
                None => self
                    .journal
                    .known_links(at, 1)
                    .ok()
                    .and_then(|mut links| links.pop()),
            };
            let Some((above, name)) = place else {
                return true;
            };
            parts.push(name);
            at = above;
        }
        let parts: Vec<&[u8]> = parts.iter().rev().map(Name::as_bytes).collect();
        let path = parts.join(&b'/');
        self.exclude
            .excludes(Path::new(OsStr::from_bytes(&path)), is_directory)
    }
}
