//! Source, target and mountpoint of a mirror: whether they are there, and whether they fit.

use crate::config::beneath;
use crate::control::{Exit, Failure};
use crate::mount::table;
use crate::transport::Target;
use rustix::fs::{Access, AtFlags, CWD};
use std::io;
use std::path::{Component, Path, PathBuf};

/// Places that fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The backing directory, canonical.
    pub source: PathBuf,
    /// The replica; a local one is canonical as far as it exists.
    pub target: Target,
    /// Where to mount, canonical; `None`: nothing is to be mounted.
    pub mountpoint: Option<PathBuf>,
}

/// Why places do not fit.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Not there, or it cannot be looked at.
    #[error("{what} {} cannot be used", path.display())]
    Missing {
        /// Which place.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a directory.
    #[error("{what} {} is not a directory", path.display())]
    NotDirectory {
        /// Which place.
        what: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// It has a `..` behind something that does not exist.
    #[error("target {} has .. behind a directory that does not exist", .0.display())]
    DotDot(PathBuf),
    /// One is inside the other, or both are the same.
    #[error("{inner} {} is inside {outer} {}", inner_path.display(), outer_path.display())]
    Nested {
        /// Which is inside.
        inner: &'static str,
        /// Its path.
        inner_path: PathBuf,
        /// What it is inside of.
        outer: &'static str,
        /// Its path.
        outer_path: PathBuf,
    },
    /// Files in the mountpoint would be hidden.
    #[error("mountpoint {} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// A dead or a live mount is there.
    #[error(transparent)]
    Mount(#[from] crate::mount::MountError),
}

impl PlaceError {
    /// The failure of the command, with what to do.
    #[must_use]
    pub fn failure(&self) -> Failure {
        use crate::mount::MountError;
        let (exit, next) = match self {
            PlaceError::Missing { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => (Exit::Path, "create it, or correct the path"),
                io::ErrorKind::PermissionDenied => (
                    Exit::Path,
                    "give yourself permission to read it, or mount as its owner",
                ),
                _ => (Exit::Path, "correct the path"),
            },
            PlaceError::NotDirectory { .. } | PlaceError::DotDot(_) => {
                (Exit::Path, "name a directory")
            }
            PlaceError::Nested { .. } => {
                (Exit::Path, "choose places of which none is inside another")
            }
            PlaceError::NotEmpty(_) => (
                Exit::Path,
                "mount at an empty directory; without MOUNTPOINT it is over SOURCE",
            ),
            PlaceError::Mount(MountError::AlreadyMounted { .. } | MountError::Silent { .. }) => {
                (Exit::Busy, "`mirrorfs umount` that mount first")
            }
            PlaceError::Mount(_) => (Exit::Busy, "unmount what is there first: umount -l"),
        };
        Failure::from_error(exit, self).next(next)
    }
}

/// Checks the places of a new mount. The mount of a dead daemon at `source` or `mountpoint` is
/// detached first, and so nothing is asked of it.
///
/// # Errors
/// See [`PlaceError`].
pub fn check(
    source: &Path,
    target: &Target,
    mountpoint: Option<&Path>,
) -> Result<Places, PlaceError> {
    let source = directory("source", source)?;
    readable(&source)?;
    let mountpoint = match mountpoint {
        None => source.clone(),
        Some(path) => directory("mountpoint", path)?,
    };
    let target = match target {
        Target::Local(path) => Target::Local(canonical_future(path)?),
        remote @ Target::Remote(_) => remote.clone(),
    };
    apart(&source, &target, &mountpoint)?;
    if mountpoint != source {
        let mut inside = std::fs::read_dir(&mountpoint).map_err(|source| PlaceError::Missing {
            what: "mountpoint",
            path: mountpoint.clone(),
            source,
        })?;
        if inside.next().is_some() {
            return Err(PlaceError::NotEmpty(mountpoint));
        }
    }
    Ok(Places {
        source,
        target,
        mountpoint: Some(mountpoint),
    })
}

/// The directory, with what dead daemons of ours left there detached.
fn directory(what: &'static str, path: &Path) -> Result<PathBuf, PlaceError> {
    use crate::mount::MountError;
    match table::detach_stale(path) {
        Ok(place) => Ok(place.path),
        Err(MountError::Point { path, source }) => match source.kind() {
            io::ErrorKind::NotADirectory => Err(PlaceError::NotDirectory { what, path }),
            _ => Err(PlaceError::Missing { what, path, source }),
        },
        Err(error) => Err(error.into()),
    }
}

fn readable(source: &Path) -> Result<(), PlaceError> {
    let access = Access::READ_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, source, access, AtFlags::EACCESS).map_err(|error| {
        PlaceError::Missing {
            what: "source",
            path: source.to_owned(),
            source: error.into(),
        }
    })
}

/// The path without links, for one that need not exist yet: what exists of it is resolved.
fn canonical_future(path: &Path) -> Result<PathBuf, PlaceError> {
    let missing = |source| PlaceError::Missing {
        what: "target",
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(missing)?;
    let mut rest: Vec<&std::ffi::OsStr> = Vec::new();
    let mut known = absolute.as_path();
    loop {
        match known.canonicalize() {
            Ok(canonical) => {
                if !canonical.is_dir() {
                    let path = known.to_owned();
                    return Err(PlaceError::NotDirectory {
                        what: "target",
                        path,
                    });
                }
                return Ok(rest
                    .iter()
                    .rev()
                    .fold(canonical, |path, name| path.join(name)));
            }
            // A link that leads nowhere must not be taken for a name that is free.
            Err(error) if error.kind() != io::ErrorKind::NotFound || known.is_symlink() => {
                return Err(missing(error));
            }
            Err(error) => {
                let Some(Component::Normal(name)) = known.components().next_back() else {
                    return Err(PlaceError::DotDot(path.to_owned()));
                };
                rest.push(name);
                known = known.parent().ok_or_else(|| missing(error))?;
            }
        }
    }
}

/// Neither source and target nor target and mountpoint may be inside each other; nor may the
/// mountpoint be inside the source or the reverse, unless they are the same.
fn apart(source: &Path, target: &Target, mountpoint: &Path) -> Result<(), PlaceError> {
    let mut pairs = Vec::new();
    if let Target::Local(target) = target {
        pairs.push((("target", target.as_path()), ("source", source)));
        pairs.push((("target", target.as_path()), ("mountpoint", mountpoint)));
    }
    if source != mountpoint {
        pairs.push((("mountpoint", mountpoint), ("source", source)));
    }
    for (one, two) in pairs {
        for ((inner, inner_path), (outer, outer_path)) in [(one, two), (two, one)] {
            if beneath(inner_path, outer_path) {
                return Err(PlaceError::Nested {
                    inner,
                    inner_path: inner_path.to_owned(),
                    outer,
                    outer_path: outer_path.to_owned(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_do_not_fit_are_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path().canonicalize().expect("a path");
        let at = |name: &str| root.join(name);
        for name in ["src/sub", "dst", "mnt", "full"] {
            std::fs::create_dir_all(at(name)).expect("made");
        }
        std::fs::write(at("file"), "").expect("made");
        std::fs::write(at("full/file"), "").expect("made");
        std::os::unix::fs::symlink(at("src"), at("link")).expect("made");
        let try_places = |source: &str, target: &str, mountpoint: Option<&str>| {
            let mountpoint = mountpoint.map(at);
            check(
                &at(source),
                &Target::Local(at(target)),
                mountpoint.as_deref(),
            )
        };
        for (source, target, mountpoint) in [
            ("none", "dst", None),
            ("file", "dst", None),
            ("src", "src", None),
            ("src", "src/new/deep", None),
            ("src", "link/new", None),
            ("src/sub", "src", None),
            ("src", "file", None),
            ("src", "file/x", None),
            ("src", "dst", Some("none")),
            ("src", "dst", Some("full")),
            ("src", "dst", Some("src/sub")),
            ("src", "mnt/new", Some("mnt")),
            ("src", "dst", Some("dst")),
        ] {
            let failure = try_places(source, target, mountpoint)
                .expect_err(target)
                .failure();
            assert_eq!(failure.exit, Exit::Path, "{source} {target} {mountpoint:?}");
            assert!(failure.next.is_some());
        }
        let over = try_places("link", "dst/new", None).expect("fits");
        assert_eq!(over.source, at("src"));
        assert_eq!(over.mountpoint, Some(at("src")));
        assert_eq!(over.target, Target::Local(at("dst/new")));
        // Names that only begin alike are not inside each other.
        assert!(try_places("src", "src2", Some("mnt")).is_ok());
        // A directory cannot be mounted below itself, but a mountpoint may be its sibling.
        assert!(try_places("src", "dst", Some("mnt")).is_ok());
    }
}
