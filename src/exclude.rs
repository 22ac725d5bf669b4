//! Which paths are not mirrored: gitignore patterns from `--exclude` and `--exclude-from`.
//!
//! A path is excluded if it, or any directory above it, is matched; what is below an excluded
//! directory cannot be included again, as in git. The object stays usable in the mount, it is
//! only never recorded. A change of the patterns is a reconcile; [`Exclude::digest`] tells.

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// Compiled patterns.
#[derive(Clone, Debug)]
pub struct Exclude {
    patterns: Gitignore,
    digest: [u8; 32],
}

/// Patterns that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExcludeError {
    /// The file of `--exclude-from` cannot be read.
    #[error("cannot read the patterns in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line of that file is no pattern.
    #[error("{} line {line}: not a gitignore pattern: {pattern:?}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What it holds.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// An argument of `--exclude` is no pattern.
    #[error("--exclude {pattern:?}: not a gitignore pattern: {reason}")]
    Pattern {
        /// The argument.
        pattern: String,
        /// Why not.
        reason: String,
    },
    /// All patterns together cannot be compiled.
    #[error("the patterns of --exclude and --exclude-from are too large together: {0}")]
    Compile(String),
}

impl Exclude {
    /// Excludes nothing.
    #[must_use]
    pub fn none() -> Exclude {
        Exclude {
            patterns: Gitignore::empty(),
            digest: digest_of(&[]),
        }
    }

    /// Compiles the arguments of `--exclude`, then the lines of each file; a later pattern wins.
    ///
    /// # Errors
    /// A file that cannot be read, or a pattern that is none.
    pub fn new(arguments: &[String], files: &[PathBuf]) -> Result<Exclude, ExcludeError> {
        let mut builder = GitignoreBuilder::new("");
        builder.allow_unclosed_class(false);
        let mut accepted: Vec<String> = Vec::new();
        for pattern in arguments {
            let bad = |reason: String| ExcludeError::Pattern {
                pattern: pattern.clone(),
                reason,
            };
            if pattern.trim_end().is_empty() || pattern.starts_with('#') {
                return Err(bad("it is empty, or a comment".to_owned()));
            }
            builder
                .add_line(None, pattern)
                .map_err(|error| bad(error.to_string()))?;
            accepted.push(pattern.clone());
        }
        for path in files {
            add_file(&mut builder, path, &mut accepted)?;
        }
        let patterns = builder
            .build()
            .map_err(|e| ExcludeError::Compile(e.to_string()))?;
        Ok(Exclude {
            patterns,
            digest: digest_of(&accepted),
        })
    }

    /// Whether there is no pattern at all, so that no path needs to be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path`, relative to the root, is excluded, by itself or by a directory above it.
    /// The root itself (an empty path) never is.
    #[must_use]
    pub fn excludes(&self, path: &Path, is_directory: bool) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        above
            .into_iter()
            .any(|parent| self.excludes_in_included(parent, true))
            || self.excludes_in_included(path, is_directory)
    }

    /// As [`Exclude::excludes`], for a path whose parent is known to be included.
    #[must_use]
    pub fn excludes_in_included(&self, path: &Path, is_directory: bool) -> bool {
        !path.as_os_str().is_empty() && self.patterns.matched(path, is_directory).is_ignore()
    }

    /// A hash of the patterns in order: another one means that other paths may be excluded.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

fn add_file(
    builder: &mut GitignoreBuilder,
    path: &Path,
    accepted: &mut Vec<String>,
) -> Result<(), ExcludeError> {
    let unreadable = |source| ExcludeError::Read {
        path: path.to_owned(),
        source,
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    for (index, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(unreadable)?;
        let text = if index == 0 {
            line.trim_start_matches('\u{feff}')
        } else {
            &line
        };
        builder
            .add_line(Some(path.to_owned()), text)
            .map_err(|error| ExcludeError::Line {
                path: path.to_owned(),
                line: index + 1,
                pattern: text.to_owned(),
                reason: error.to_string(),
            })?;
        if !text.trim().is_empty() && !text.starts_with('#') {
            accepted.push(text.to_owned());
        }
    }
    Ok(())
}

fn digest_of(patterns: &[String]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for pattern in patterns {
        hasher.update(pattern.as_bytes());
        hasher.update(b"\0");
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exclude(patterns: &[&str]) -> Exclude {
        let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
        Exclude::new(&patterns, &[]).unwrap()
    }

    #[test]
    fn a_pattern_holds_for_all_below_a_directory() {
        let rules = exclude(&["target/", "*.o", "/build", "!keep.o", "doc/**/draft"]);
        let cases = [
            ("target", true, true),
            ("target", false, false),
            ("a/target/debug/x", false, true),
            ("a/b.o", false, true),
            ("a/keep.o", false, false),
            ("target/keep.o", false, true),
            ("build/x", false, true),
            ("a/build", false, false),
            ("doc/a/b/draft", false, true),
            ("draft", false, false),
            ("", true, false),
        ];
        for (path, is_directory, want) in cases {
            assert_eq!(
                rules.excludes(Path::new(path), is_directory),
                want,
                "{path}"
            );
        }
        assert!(!Exclude::none().excludes(Path::new("a"), false));
    }

    #[test]
    fn names_of_any_bytes_are_matched() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"a/\xff\xfe.o"));
        assert!(exclude(&["*.o"]).excludes(path, false));
    }

    #[test]
    fn what_is_no_pattern_is_an_error_that_names_it() {
        for bad in ["", "# all", "a[", "a{b"] {
            let error = Exclude::new(&[bad.to_owned()], &[])
                .expect_err(bad)
                .to_string();
            assert!(error.contains("--exclude"), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none");
        let error = Exclude::new(&[], &[missing]).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
        let file = directory.path().join("patterns");
        std::fs::write(&file, "# fine\n\n*.o\na[\n").unwrap();
        let error = Exclude::new(&[], std::slice::from_ref(&file))
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 4"), "{error}");
        std::fs::write(&file, "# fine\n\n*.o\n").unwrap();
        let from_file = Exclude::new(&[], &[file]).unwrap();
        assert!(from_file.excludes(Path::new("x.o"), false));
        assert_eq!(from_file.digest(), exclude(&["*.o"]).digest());
        assert_ne!(from_file.digest(), exclude(&["*.a"]).digest());
    }
}
