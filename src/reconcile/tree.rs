//! What a walk needs of the rest: the real tree, the known tree, and room for what it finds.

use crate::backing::Inspected;
use crate::model::{FileId, Name};
use std::io;
use std::sync::Arc;
use tokio::sync::Notify;

/// The names of a real directory, batch by batch; an empty one is the end.
pub type Names = Box<dyn FnMut(usize) -> io::Result<Vec<Name>>>;

/// The two trees that a walk makes equal. [`crate::backing::Backing`] and
/// [`crate::journal::Journal`] together are one; tests have others.
pub trait Tree: Send + Sync + 'static {
    /// The real names of a directory.
    ///
    /// # Errors
    /// ENOENT or ESTALE if it is gone; else it cannot be read now.
    fn list(&self, directory: FileId) -> io::Result<Names>;

    /// The known names of a directory, in order, from behind `after`, at most `max`.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn known_children(
        &self,
        directory: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> io::Result<Vec<(Name, FileId)>>;

    /// Compares what one name holds with what it is known to hold, and marks the difference.
    /// `None`: it holds nothing that is mirrored.
    ///
    /// # Errors
    /// When the object cannot be looked at.
    fn inspect(&self, parent: FileId, name: &Name) -> io::Result<Option<Inspected>>;

    /// The same for the root.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn inspect_root(&self) -> io::Result<Inspected>;

    /// Marks a suspect to be compared, content included. False: it is gone.
    ///
    /// # Errors
    /// When the object cannot be looked at.
    fn inspect_object(&self, id: FileId) -> io::Result<bool>;

    /// Directories that operations have discovered since this was last called.
    fn take_unwalked(&self) -> Vec<FileId>;

    /// How many directories operations have discovered since the start.
    fn discovered(&self) -> u64;

    /// Rings when one is discovered, and when the walker is to look up. Only the walker waits
    /// for it.
    fn bell(&self) -> Arc<Notify>;

    /// Whether the open epoch can take more.
    fn has_room(&self) -> bool;

    /// A walk over everything begins.
    fn walk_begins(&self);

    /// Nothing is left to be compared. `walked`: a walk over everything has ended with it.
    fn settled(&self, walked: bool);

    /// Where a directory is, for people.
    fn describe(&self, directory: FileId) -> String;
}
