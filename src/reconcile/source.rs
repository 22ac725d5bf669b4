//! What is refused before the first walk (invariant I11): a tree that is empty where one is known,
//! or another tree than the one that is known. Mirroring it would be a mass delete.

use crate::disk::TreeIdentity;
use std::path::PathBuf;

/// What the state directory remembers of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Remembered<'a> {
    /// Which tree it is of; `None` before the first mount.
    pub identity: Option<&'a TreeIdentity>,
    /// How many objects the index has, the root among them.
    pub objects: u64,
}

/// What a person has allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Allow {
    /// `--allow-empty-source`
    pub empty: bool,
    /// `--allow-changed-source`
    pub changed: bool,
}

/// Why the source is not mirrored as it is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SourceRefused {
    /// There is nothing in it, and the replica has something.
    #[error(
        "{} is empty, but the replica holds {objects} objects that were in it; is a disk not \
         mounted? To delete them at the replica, pass --allow-empty-source",
        path.display()
    )]
    Empty {
        /// The source.
        path: PathBuf,
        /// How many objects would be deleted.
        objects: u64,
    },
    /// It is another directory, or on another file system, than at the last mount.
    #[error(
        "{} is not the directory that was mirrored before (another file system, or a directory \
         made anew); to make the replica equal to it, pass --allow-changed-source",
        path.display()
    )]
    Changed {
        /// The source.
        path: PathBuf,
    },
}

/// Decides whether a source may be walked. `is_empty`: nothing in it would be mirrored.
///
/// # Errors
/// [`SourceRefused`] names the option that allows it.
pub fn check_source(
    path: &std::path::Path,
    identity: &TreeIdentity,
    is_empty: bool,
    remembered: Remembered<'_>,
    allow: Allow,
) -> Result<(), SourceRefused> {
    let is_same = remembered
        .identity
        .is_none_or(|known| known.matches(identity));
    if !is_same && !allow.changed {
        return Err(SourceRefused::Changed {
            path: path.to_owned(),
        });
    }
    let others = remembered.objects.saturating_sub(1);
    if is_empty && others > 0 && !allow.empty {
        return Err(SourceRefused::Empty {
            path: path.to_owned(),
            objects: others,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::tree_identity;
    use std::path::Path;

    #[test]
    fn a_tree_that_would_be_a_mass_delete_is_refused_by_name() {
        let identity = |path: &Path| tree_identity(std::fs::File::open(path).unwrap()).unwrap();
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (here, there) = (identity(one.path()), identity(other.path()));
        let path = one.path();
        let check = |now, is_empty, known, objects, allow| {
            check_source(
                path,
                now,
                is_empty,
                Remembered {
                    identity: known,
                    objects,
                },
                allow,
            )
        };
        let none = Allow::default();
        assert_eq!(check(&here, true, None, 1, none), Ok(()));
        assert_eq!(check(&here, false, Some(&here), 9, none), Ok(()));
        let empty = check(&here, true, Some(&here), 9, none).unwrap_err();
        assert!(empty.to_string().contains("8 objects"), "{empty}");
        assert!(
            empty.to_string().contains("--allow-empty-source"),
            "{empty}"
        );
        let changed = check(&there, false, Some(&here), 9, none).unwrap_err();
        assert!(
            changed.to_string().contains("--allow-changed-source"),
            "{changed}"
        );
        let both = Allow {
            empty: true,
            changed: true,
        };
        assert_eq!(check(&there, true, Some(&here), 9, both), Ok(()));
        assert!(
            check(
                &there,
                true,
                Some(&here),
                9,
                Allow {
                    empty: false,
                    ..both
                }
            )
            .is_err()
        );
    }
}
