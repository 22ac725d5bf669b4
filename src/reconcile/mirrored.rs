//! The two trees of a mount: the backing directory, and what the journal and the index know.

use super::tree::{Names, Tree};
use crate::backing::{Backing, Inspected};
use crate::journal::Journal;
use crate::limits::DESCRIBED_DEPTH_MAX;
use crate::model::{FileId, Name};
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;

/// See the module.
pub struct Mirrored {
    backing: Arc<Backing>,
    journal: Arc<Journal>,
}

impl Mirrored {
    /// The trees of one mount.
    #[must_use]
    pub fn new(backing: Arc<Backing>, journal: Arc<Journal>) -> Mirrored {
        Mirrored { backing, journal }
    }
}

impl Tree for Mirrored {
    fn list(&self, directory: FileId) -> io::Result<Names> {
        let mut listing = self.backing.list(directory)?;
        Ok(Box::new(move |max| listing.next(max)))
    }

    fn known_children(
        &self,
        directory: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> io::Result<Vec<(Name, FileId)>> {
        self.journal
            .known_children(directory, after, max)
            .map_err(io::Error::other)
    }

    fn inspect(&self, parent: FileId, name: &Name) -> io::Result<Option<Inspected>> {
        self.backing.inspect(parent, name)
    }

    fn inspect_root(&self) -> io::Result<Inspected> {
        self.backing.inspect_root()
    }

    fn inspect_object(&self, id: FileId) -> io::Result<bool> {
        self.backing.inspect_object(id)
    }

    fn take_unwalked(&self) -> Vec<FileId> {
        self.backing.take_unwalked()
    }

    fn discovered(&self) -> u64 {
        self.backing.discovered()
    }

    fn bell(&self) -> Arc<Notify> {
        self.backing.unwalked_notify()
    }

    fn has_room(&self) -> bool {
        !self.journal.pressure().full
    }

    fn walk_begins(&self) {
        self.backing.begin_walk();
    }

    fn settled(&self, walked: bool) {
        if walked {
            self.backing.end_walk();
        }
        self.journal.suspects_settled();
    }

    fn describe(&self, directory: FileId) -> String {
        let mut names: Vec<String> = Vec::new();
        let mut at = directory;
        while at != FileId::ROOT && names.len() < DESCRIBED_DEPTH_MAX {
            match self
                .journal
                .known_links(at, 1)
                .ok()
                .and_then(|mut links| links.pop())
            {
                Some((parent, name)) => {
                    names.push(name.to_string());
                    at = parent;
                }
                None => {
                    names.push(format!("(object {at})"));
                    break;
                }
            }
        }
        if names.is_empty() {
            return ".".to_owned();
        }
        names.reverse();
        names.join("/")
    }
}
