//! Which mirrors there are, and which of them a path means: a scan of the directories where
//! mirrors keep their state. There is no list that could be out of date.
//!
//! A state root holds one directory a mirror, named after its source with a hash of source and
//! target. A mirror with another `--state-dir` leaves a symbolic link in the default root, so
//! that the commands find it without the option.

use crate::config::{MIRROR_VERSION, Mirror, beneath};
use crate::control::{Client, Exit, Failure};
use crate::disk::{read_file, replace_file};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The description of a mirror in its state directory.
pub const MIRROR_NAME: &str = "mirror.json";
/// The longest description that is read, in bytes.
const MIRROR_BYTES_MAX: usize = 1024 * 1024;
/// How many mirrors are looked at.
const MIRRORS_MAX: usize = 4096;

/// Where this user's mirrors keep their state by default.
#[must_use]
pub fn default_root() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/mirrorfs"));
    }
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("mirrorfs"))
}

/// The state directory of a mirror in a state root.
#[must_use]
pub fn state_dir(root: &Path, source: &Path, target: &str) -> PathBuf {
    let mut hasher = blake3::Hasher::new();
    hasher.update(source.as_os_str().as_bytes());
    hasher.update(b"\0");
    hasher.update(target.as_bytes());
    let hash = hasher.finalize().to_hex();
    let name = source
        .file_name()
        .unwrap_or(OsStr::new("root"))
        .to_string_lossy();
    let plain = |c: char| {
        if c.is_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = name.chars().map(plain).take(32).collect();
    root.join(format!("{name}-{}", &hash[..16]))
}

/// Writes the description of a mirror into its open state directory.
///
/// # Errors
/// When it cannot be written.
pub fn write(directory: impl AsFd, mirror: &Mirror) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(mirror)?;
    text.push(b'\n');
    replace_file(directory, MIRROR_NAME, &text)
}

/// Lets the commands find a mirror whose state is not in the default root. Where that root
/// cannot be written they need `--state-dir`.
pub fn announce(state_dir: &Path) {
    let Some(root) = default_root() else { return };
    if let Err(error) = announce_in(&root, state_dir) {
        let root = root.display();
        tracing::warn!(%error, %root, "commands will need --state-dir to find this mirror");
    }
}

fn announce_in(root: &Path, state_dir: &Path) -> io::Result<()> {
    let (Some(name), Some(parent)) = (state_dir.file_name(), state_dir.parent()) else {
        return Ok(());
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)?;
    if parent.canonicalize()? == root.canonicalize()? {
        return Ok(());
    }
    // Links of mirrors whose state is gone.
    for entry in std::fs::read_dir(root)?.flatten().map(|entry| entry.path()) {
        if entry.is_symlink() && matches!(entry.try_exists(), Ok(false)) {
            let _ = std::fs::remove_file(entry);
        }
    }
    let link = root.join(name);
    match std::fs::read_link(&link) {
        Ok(target) if target == state_dir => return Ok(()),
        Ok(_) => std::fs::remove_file(&link)?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(state_dir, link)
}

/// The mirrors of this user.
#[derive(Debug, Default)]
pub struct Registry {
    mirrors: Vec<Mirror>,
}

impl Registry {
    /// Reads the descriptions in `root`, or in the default root. What cannot be read is left out:
    /// it is no mirror of this user, or not one any more.
    #[must_use]
    pub fn read(root: Option<&Path>) -> Registry {
        let root = root.map(Path::to_owned).or_else(default_root);
        let entries = root
            .and_then(|root| std::fs::read_dir(root).ok())
            .into_iter()
            .flatten();
        let found = entries.flatten().filter_map(|entry| read(&entry.path()));
        Registry {
            mirrors: found.take(MIRRORS_MAX).collect(),
        }
    }

    /// All of them.
    #[must_use]
    pub fn mirrors(&self) -> &[Mirror] {
        &self.mirrors
    }

    /// The mirror that `path` belongs to: its mountpoint, its source, or below either; a state
    /// directory names its mirror, too.
    ///
    /// # Errors
    /// When there is none, or when several with nothing to tell them apart.
    pub fn find(&self, path: &Path) -> Result<Mirror, Failure> {
        let wanted = resolved(path).map_err(|error| {
            Failure::from_error(Exit::Path, &error).context("the working directory is gone")
        })?;
        let alive = |mirror: &Mirror| Client::connect(&mirror.state_dir).is_ok();
        choose(&self.mirrors, &wanted, &alive)
    }
}

/// Which of `mirrors` an absolute path means: the deepest match wins, then one that is alive.
fn choose(
    mirrors: &[Mirror],
    wanted: &Path,
    alive: &dyn Fn(&Mirror) -> bool,
) -> Result<Mirror, Failure> {
    let depth = |mirror: &Mirror| {
        let places = [&mirror.mountpoint, &mirror.source, &mirror.state_dir];
        let matches = places.into_iter().filter(|place| beneath(wanted, place));
        matches.map(|place| place.components().count()).max()
    };
    let deepest = mirrors.iter().filter_map(depth).max();
    let mut found: Vec<&Mirror> = mirrors
        .iter()
        .filter(|m| deepest.is_some() && depth(m) == deepest)
        .collect();
    if found.len() > 1 {
        let (up, down): (Vec<&Mirror>, Vec<&Mirror>) = found.iter().partition(|m| alive(m));
        found = if up.is_empty() { down } else { up };
    }
    match found.as_slice() {
        [] => {
            let what = format!("no mirror is known at {}", wanted.display());
            Err(Failure::new(Exit::NotMounted, what).next(
                "`mirrorfs status` lists those that run; with another state directory, \
                    give --state-dir",
            ))
        }
        [mirror] => Ok((*mirror).clone()),
        several => {
            let dirs: Vec<String> = several
                .iter()
                .map(|m| m.state_dir.display().to_string())
                .collect();
            let what = format!("{} has several mirrors", wanted.display());
            Err(Failure::new(Exit::Usage, what).next(format!(
                "name one by its state directory: {}",
                dirs.join(", ")
            )))
        }
    }
}

/// The description in a state directory; `None` if there is none that can be read.
#[must_use]
pub fn read(state_dir: &Path) -> Option<Mirror> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(state_dir, flags, Mode::empty()).ok()?;
    // Whoever can write to a state root must not be believed to be this user.
    if rustix::fs::fstat(&directory).ok()?.st_uid != rustix::process::geteuid().as_raw() {
        return None;
    }
    let text = read_file(&directory, MIRROR_NAME, MIRROR_BYTES_MAX).ok()??;
    let mut mirror: Mirror = serde_json::from_slice(&text).ok()?;
    if mirror.version > MIRROR_VERSION {
        return None;
    }
    // It may have been moved.
    mirror.state_dir = state_dir.canonicalize().ok()?;
    Some(mirror)
}

/// An absolute path without links, as far as that can be had: below the mount of a dead daemon
/// nothing can be resolved, and a path may be gone.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    for known in absolute.ancestors() {
        if let Ok(canonical) = known.canonicalize() {
            let rest = absolute.strip_prefix(known).unwrap_or(Path::new(""));
            return Ok(canonical.join(rest));
        }
    }
    Ok(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    fn mirror(source: &str, mountpoint: &str, state_dir: &str) -> Mirror {
        Mirror {
            version: MIRROR_VERSION,
            source: source.into(),
            target: "h:/t".into(),
            mountpoint: mountpoint.into(),
            pid: 1,
            state_dir: state_dir.into(),
            options: Options::default(),
        }
    }

    #[test]
    fn a_path_finds_its_mirror() {
        let mirrors = [
            mirror("/people/u", "/people/u", "/s/1"),
            mirror("/people/u/p", "/mnt", "/s/2"),
            mirror("/people/u/p", "/mnt2", "/s/3"),
        ];
        let find = |path: &str, up: &'static [&str]| {
            let up = move |m: &Mirror| up.iter().any(|dir| m.state_dir == Path::new(dir));
            choose(&mirrors, Path::new(path), &up).map(|found| found.state_dir)
        };
        assert_eq!(find("/people/u", &[]), Ok("/s/1".into()));
        assert_eq!(find("/people/u/other/x", &[]), Ok("/s/1".into()));
        assert_eq!(find("/mnt/a", &[]), Ok("/s/2".into()));
        assert_eq!(find("/mnt2", &[]), Ok("/s/3".into()));
        assert_eq!(find("/people/u/p/q", &["/s/3"]), Ok("/s/3".into()));
        assert_eq!(find("/s/2", &[]), Ok("/s/2".into()));
        assert_eq!(
            find("/people/u/p", &[]).map_err(|f| f.exit),
            Err(Exit::Usage)
        );
        assert_eq!(
            find("/people/u2", &[]).map_err(|f| f.exit),
            Err(Exit::NotMounted)
        );
        assert_eq!(
            find("/mntx", &[]).map_err(|f| f.exit),
            Err(Exit::NotMounted)
        );
    }

    #[test]
    fn descriptions_are_found_where_they_are() {
        let root = tempfile::tempdir().expect("a directory");
        let root = root.path().canonicalize().expect("a path");
        let dir = state_dir(&root, Path::new("/people/u/my project"), "h:/t");
        assert_eq!(dir.parent(), Some(root.as_path()));
        assert_ne!(
            dir,
            state_dir(&root, Path::new("/people/u/my project"), "h:/t2")
        );
        std::fs::create_dir_all(&dir).expect("made");
        std::fs::create_dir(root.join("no mirror")).expect("made");
        let written = mirror("/people/u/my project", "/mnt", "/elsewhere");
        write(std::fs::File::open(&dir).expect("open"), &written).expect("written");
        let registry = Registry::read(Some(&root));
        let found = registry.mirrors();
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0],
            Mirror {
                state_dir: dir.clone(),
                ..written
            }
        );
        std::fs::write(dir.join(MIRROR_NAME), "{").expect("written");
        assert_eq!(read(&dir), None);
    }

    #[test]
    fn a_mirror_elsewhere_is_announced() {
        let place = tempfile::tempdir().expect("a directory");
        let place = place.path().canonicalize().expect("a path");
        let (root, one, two) = (place.join("root"), place.join("a/m"), place.join("b/m"));
        for dir in [&one, &two] {
            std::fs::create_dir_all(dir).expect("made");
        }
        announce_in(&root, &one).expect("announced");
        announce_in(&root, &one).expect("announced again");
        assert_eq!(std::fs::read_link(root.join("m")).expect("a link"), one);
        announce_in(&root, &two).expect("announced");
        assert_eq!(std::fs::read_link(root.join("m")).expect("a link"), two);
        std::os::unix::fs::symlink(place.join("gone"), root.join("old")).expect("made");
        announce_in(&root, &root.join("mine")).expect("nothing to do");
        announce_in(&root, &two).expect("announced");
        assert_eq!(std::fs::read_dir(&root).expect("a directory").count(), 1);
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&root)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
