//! What a new file most likely is a new version of, before it takes the name over.
//!
//! Editors write the new version beside the old one and rename it over that, and a seal may come
//! in between: the new file is then planned without having replaced anything. So a young file is
//! compared with the file beside it that is named alike, or else is nearly as large. A wrong guess
//! costs the reading of that file, once; nothing is believed that was not compared.

use super::epoch::{BASE_FACTOR_MAX, Epoch};
use super::{Base, PlanError};
use crate::limits::{
    RELATIVE_BYTES_MAX, RELATIVE_BYTES_MIN, RELATIVE_SIBLINGS_MAX, YOUNG_FILES_MAX,
};
use crate::model::{FileId, Name};
use std::collections::VecDeque;
use std::fs::File;
use std::time::SystemTime;

/// Files that were new not long ago, oldest first.
#[derive(Debug, Default)]
pub(super) struct Young(VecDeque<FileId>);

impl Young {
    /// Notes a new file.
    pub fn born(&mut self, id: FileId) {
        self.0.push_back(id);
        if self.0.len() > YOUNG_FILES_MAX {
            self.0.pop_front();
        }
    }

    /// Whether it was new not long ago.
    pub fn has(&self, id: FileId) -> bool {
        self.0.contains(&id)
    }

    /// It has nothing in common with the file it was compared with.
    pub fn forget(&mut self, id: FileId) {
        self.0.retain(|young| *young != id);
    }
}

/// A file beside a young one.
pub(super) struct Relative {
    pub id: FileId,
    file: File,
    seen: Option<Seen>,
}

// Size and time of the last modification: what a write changes, and an unlink does not.
type Seen = (u64, SystemTime);

impl Relative {
    /// Whether it is still what was read. Its blocks are checked by the replica, too.
    pub fn holds(&self) -> bool {
        self.seen.is_some() && seen(&self.file) == self.seen
    }
}

fn seen(file: &File) -> Option<Seen> {
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// The most likely relative of a file of `size` bytes, `dirty` of them to be planned.
pub(super) fn find(
    epoch: &Epoch<'_, '_>,
    id: FileId,
    name: Option<(FileId, Name)>,
    size: u64,
    dirty: u64,
) -> Result<Option<(Relative, Base)>, PlanError> {
    let Some((parent, name)) = name.filter(|_| dirty >= RELATIVE_BYTES_MIN) else {
        return Ok(None);
    };
    let mut best: Option<(bool, u64, FileId)> = None;
    for (other, sibling) in epoch.index.children(parent, RELATIVE_SIBLINGS_MAX)? {
        let Some(object) = epoch.index.object(sibling)?.filter(|o| o.fixed.is_file()) else {
            continue;
        };
        let fits = (RELATIVE_BYTES_MIN..=RELATIVE_BYTES_MAX).contains(&object.size)
            && object.size / BASE_FACTOR_MAX <= dirty
            && sibling != id
            && !epoch.is_content_changed(sibling);
        let alike = are_alike(name.as_bytes(), other.as_bytes());
        let distance = object.size.abs_diff(size);
        if !fits || !(alike || distance <= size / 8) {
            continue;
        }
        if best.is_none_or(|(named, far, _)| (alike, far) > (named, distance)) {
            best = Some((alike, distance, sibling));
        }
    }
    let Some((_, _, sibling)) = best else {
        return Ok(None);
    };
    // It may have been replaced since the seal, most likely by the young one.
    let opened = epoch
        .source
        .open(sibling)
        .ok()
        .or_else(|| epoch.source.kept(sibling));
    let Some((file, read)) = opened.and_then(|file| Some((file.try_clone().ok()?, file))) else {
        return Ok(None);
    };
    let seen = seen(&file);
    let base = Base::prepare(sibling, read, epoch.index)?;
    let relative = Relative {
        id: sibling,
        file,
        seen,
    };
    Ok(base.map(|base| (relative, base)))
}

/// Whether one name is the other with something before or behind it, as programs name the new
/// version of a file: `.text.swp`, `text~`, `text.new`, `#text#`.
fn are_alike(one: &[u8], other: &[u8]) -> bool {
    let (short, long) = if one.len() < other.len() {
        (one, other)
    } else {
        (other, one)
    };
    let stem = short.strip_prefix(b".").unwrap_or(short);
    stem.len() >= 3 && long.windows(stem.len()).any(|part| part == stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_versions_are_alike() {
        for version in [
            &b"text.new"[..],
            b".text.swp",
            b"text~",
            b"#text#",
            b".text.Xb3f1a",
        ] {
            assert!(are_alike(version, b"text"));
            assert!(are_alike(b"text", version));
        }
        assert!(!are_alike(b"4913", b"text"));
        assert!(!are_alike(b"a", b"ab"));
    }
}
