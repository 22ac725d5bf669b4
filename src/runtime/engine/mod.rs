//! A mirror without its mount: the state directory, the index, the journal, the backing
//! directory, the walk and the shipping, joined.
//!
//! Everything that needs a path is opened here, before a mount can cover it (invariant I8).

mod source;
mod standing;

use super::connect::{Embedded, Remote};
use super::failures;
use super::ship::{self, Connect, Shipper, Suspicion};
use crate::backing::{self, Backing};
use crate::config::{self, Mirror};
use crate::control::{Exit, Failure};
use crate::disk::tree_identity;
use crate::exclude::Exclude;
use crate::journal::{self, Journal, Suspects};
use crate::model::{EpochId, FileId, RESERVED_NAME};
use crate::reconcile::{Allow, Mark, Mirrored, Remembered, Start, Walker, check_source};
use crate::records::Records;
use crate::state::{LastStop, StateDir};
use crate::transport::{self, Connector, Target};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the first contact looks how it stands.
const CONTACT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a mount waits for a replica that listens but does not answer yet: it may have to
/// compare a tree that it adopts, or to finish an apply. The mount is usable meanwhile.
const GREETING_PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Engine {
    mirror: Mirror,
    state: Arc<StateDir>,
    index: Records,
    journal: Arc<Journal>,
    backing: Arc<Backing>,
    shipper: Shipper,
    walk: Arc<Walk>,
    embedded: Option<Embedded>,
    terminal: Arc<AtomicBool>,
    known: bool,
    known_epoch: EpochId,
    degraded: Mutex<Option<Arc<AtomicBool>>>,
    closed: AtomicBool,
}

/// The walker, and what it is to be told once it is there.
struct Walk {
    walker: Mutex<Option<Walker>>,
    early: Mutex<Vec<Suspicion>>,
    suspects: Suspects,
    // The last walk that was seen to be complete, and how many there were.
    seen: Mutex<(Option<Mark>, u64)>,
}

impl Walk {
    fn new(suspects: Suspects) -> Walk {
        Walk {
            walker: Mutex::new(None),
            early: Mutex::new(Vec::new()),
            suspects,
            seen: Mutex::new((None, 0)),
        }
    }

    /// What the walk begins with: everything by its stamps; by its content what may have been
    /// lost when the machine went down.
    fn start(&self, last: LastStop) -> Start {
        let lost_power = !last.clean && !last.same_boot;
        let (by_content, suspects) = match &self.suspects {
            Suspects::Files(files) if lost_power => (false, files.clone()),
            Suspects::Everything if lost_power => (true, Vec::new()),
            _ => (false, Vec::new()),
        };
        Start {
            walk: true,
            by_content,
            suspects,
        }
    }

    fn suspect(&self, suspicion: Suspicion) {
        let walker = self.walker.lock();
        match (&*walker, suspicion) {
            (None, suspicion) => self.early.lock().push(suspicion),
            (Some(walker), Suspicion::Object(id)) => walker.suspect([id]),
            (Some(walker), Suspicion::Everything) => walker.walk_again(true),
            (Some(walker), Suspicion::Tree) => walker.walk_again(false),
        }
    }

    /// Which walk is complete, if the last one is.
    fn settled(&self) -> Option<u64> {
        let mark = self.walker.lock().as_ref().and_then(Walker::mark)?;
        let mut seen = self.seen.lock();
        if seen.0 != Some(mark) {
            *seen = (Some(mark), seen.1 + 1);
        }
        Some(seen.1)
    }
}

impl Engine {
    /// Opens everything, and begins to reach the replica. Nothing is walked or shipped yet.
    ///
    /// # Errors
    /// Whatever is missing, damaged, in use or refused.
    pub fn open(mirror: Mirror, target: &Target) -> Result<Engine, Failure> {
        let root = open_source(&mirror.source)?;
        let exclude = exclude(&mirror)?;
        let state = StateDir::open(&mirror.state_dir, true).map_err(|e| failures::state(&e))?;
        let state = Arc::new(state);
        let known = state.identity().replica.is_some();
        let index = open_index(&state)?;
        let known_epoch = index
            .state()
            .map_err(|error| failures::index(&error))?
            .epoch;
        check(&mirror, &state, &index, &root, &exclude)?;
        let (journal, suspects) = open_journal(&state, &index)?;
        let backing = backing::Options {
            root,
            local: local(mirror.options.local),
            exclude,
            privileged: is_root(),
            hold_unlinked: serves_without_open(),
        };
        let backing = Backing::open(backing, Arc::clone(&journal), index.clone())
            .map_err(|error| failures::local(&error).context("cannot open the source"))?;
        let terminal = Arc::new(AtomicBool::new(true));
        let (connect, embedded) = connect(&mirror, target, &terminal)?;
        let walk = Arc::new(Walk::new(suspects));
        let (told, asked) = (Arc::clone(&walk), Arc::clone(&walk));
        let shipper = Shipper::start(ship::Options {
            connect,
            state: Arc::clone(&state),
            journal: Arc::clone(&journal),
            index: index.clone(),
            source: Arc::new(source::Source {
                backing: Arc::clone(&backing),
                journal: Arc::clone(&journal),
            }),
            adopt: mirror.options.adopt,
            fake_super: mirror.options.fake_super,
            walk: Arc::new(move || asked.settled()),
            suspect: Box::new(move |suspicion| told.suspect(suspicion)),
        })
        .map_err(|error| failures::local(&error).context("cannot start shipping"))?;
        Ok(Engine {
            mirror,
            state,
            index,
            journal,
            backing,
            shipper,
            walk,
            embedded,
            terminal,
            known,
            known_epoch,
            degraded: Mutex::new(None),
            closed: AtomicBool::new(false),
        })
    }

    /// The mirror.
    #[must_use]
    pub fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// Its backing directory, for the mount.
    #[must_use]
    pub fn backing(&self) -> Arc<Backing> {
        Arc::clone(&self.backing)
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &StateDir {
        &self.state
    }

    /// Waits until the replica has agreed, or it is clear that it will not now. A replica that is
    /// known and only cannot be reached is no failure: the mirror is offline then.
    ///
    /// # Errors
    /// Why the replica cannot be used.
    pub fn first_contact(&self) -> Result<(), Failure> {
        let mut greeting = None;
        loop {
            match self
                .shipper
                .first_contact(Instant::now() + CONTACT_INTERVAL)
            {
                Ok(()) => return Ok(()),
                Err(Some(failure)) if self.known && failure.transient => {
                    tracing::warn!(error = %failure.message, "the replica cannot be reached now");
                    return Ok(());
                }
                Err(Some(failure)) => return Err(failures::shipping(&failure)),
                Err(None) => {}
            }
            let greets = self.shipper.status().phase == ship::Phase::Greeting;
            let since = greeting.get_or_insert_with(Instant::now);
            if !greets {
                // Whoever types a password takes the time that it takes.
                greeting = None;
            } else if since.elapsed() > GREETING_PATIENCE {
                tracing::info!("the replica takes its time; the mount does not wait for it");
                return Ok(());
            }
        }
    }

    /// Starts to compare source and index, and with that to ship. From here on nobody is asked
    /// for a secret any more.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start_walk(&self) -> Result<(), Failure> {
        self.terminal.store(false, Ordering::SeqCst);
        let tree = Mirrored::new(Arc::clone(&self.backing), Arc::clone(&self.journal));
        let walker = Walker::start(Arc::new(tree), self.walk.start(self.state.last_stop()))
            .map_err(|error| Failure::from_error(Exit::Failure, &error))?;
        *self.walk.walker.lock() = Some(walker);
        let early = std::mem::take(&mut *self.walk.early.lock());
        early
            .into_iter()
            .for_each(|suspicion| self.walk.suspect(suspicion));
        Ok(())
    }

    /// Tells the shipping how the walk stands, as long as there is one.
    pub fn follow_walk(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let engine = Arc::clone(self);
        async move {
            let watch = engine.walk.walker.lock().as_ref().map(Walker::watch);
            let Some(mut progress) = watch else { return };
            loop {
                progress.borrow_and_update();
                engine.shipper.walk_changed();
                if progress.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Lets the status say whether `fsync` waits.
    pub fn show_degraded(&self, degraded: Arc<AtomicBool>) {
        *self.degraded.lock() = Some(degraded);
    }
}

/// The directory itself, before anything is mounted over it.
fn open_source(source: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(source, flags, Mode::empty()).map_err(|error| {
        Failure::from_error(Exit::Path, &io::Error::from(error))
            .context(format!("source {} cannot be opened", source.display()))
            .next("correct the path, or mount as a user who may read it")
    })
}

fn open_index(state: &StateDir) -> Result<Records, Failure> {
    let path = state.index_path();
    let opened = match path.try_exists() {
        Ok(false) => {
            // It is made again from what the replica holds; without a replica it is new.
            state
                .forget_replica_state()
                .map_err(|error| failures::state(&error))?;
            Records::create(&path)
        }
        _ => Records::open(&path),
    };
    opened.map_err(|error| failures::index(&error))
}

fn open_journal(
    state: &Arc<StateDir>,
    index: &Records,
) -> Result<(Arc<Journal>, Suspects), Failure> {
    let known = index.state().map_err(|error| failures::index(&error))?;
    let directory = state
        .directory()
        .try_clone_to_owned()
        .map_err(|e| failures::local(&e))?;
    let reserving = Arc::clone(state);
    let options = journal::Options {
        directory,
        next_epoch: state.identity().epochs_reserved.max(known.epoch).next(),
        next_id: state.ids_reserved().max(FileId(known.highest_id.0 + 1)),
        reserve: Arc::new(move |below| reserving.reserve_ids(below).map_err(io::Error::other)),
    };
    let (journal, suspects) = Journal::open(options, index.clone())
        .map_err(|error| Failure::from_error(Exit::LocalDisk, &error))?;
    Ok((Arc::new(journal), suspects))
}

/// The patterns, and what must not be mirrored in any case: where the state is kept.
fn exclude(mirror: &Mirror) -> Result<Exclude, Failure> {
    let mut patterns = mirror.options.excludes.clone();
    let root = mirror.state_dir.parent().unwrap_or(&mirror.state_dir);
    if let Ok(inside) = root.strip_prefix(&mirror.source) {
        let inside = match inside.as_os_str().is_empty() {
            // The state root is the source itself.
            true => mirror
                .state_dir
                .strip_prefix(&mirror.source)
                .unwrap_or(inside),
            false => inside,
        };
        let Some(text) = inside.to_str() else {
            return Err(
                Failure::new(Exit::Path, "the path of the state directory is not UTF-8")
                    .next("give another --state-dir, outside of the source"),
            );
        };
        patterns.push(anchored(text));
    }
    Exclude::new(&patterns, &mirror.options.exclude_from).map_err(|error| {
        Failure::from_error(Exit::Usage, &error).next("see gitignore(5) for the syntax")
    })
}

/// A gitignore pattern for one directory, from the root.
fn anchored(path: &str) -> String {
    let mut pattern = String::from("/");
    for c in path.chars() {
        if matches!(c, '\\' | '*' | '?' | '[' | ']' | '!' | '#' | ' ') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('/');
    pattern
}

/// Refuses a source that is not the one that was mirrored, or that has lost everything.
fn check(
    mirror: &Mirror,
    state: &StateDir,
    index: &Records,
    root: &OwnedFd,
    exclude: &Exclude,
) -> Result<(), Failure> {
    let at = |error: io::Error| {
        Failure::from_error(Exit::Path, &error)
            .context(format!("source {} cannot be read", mirror.source.display()))
    };
    let identity = tree_identity(root).map_err(at)?;
    let listing = rustix::fs::Dir::read_from(root).map_err(|error| at(error.into()))?;
    let mut is_empty = true;
    for entry in listing {
        let entry = entry.map_err(|error| at(error.into()))?;
        let name = entry.file_name().to_bytes();
        let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name);
        let is_directory = entry.file_type().is_dir();
        is_empty &= name == "."
            || name == ".."
            || name == RESERVED_NAME
            || exclude.excludes(Path::new(name), is_directory);
    }
    let known = state.identity();
    let objects = index
        .state()
        .map_err(|error| failures::index(&error))?
        .objects;
    let remembered = Remembered {
        identity: known.source.as_ref(),
        objects,
    };
    let allow = Allow {
        empty: mirror.options.allow_empty_source,
        changed: mirror.options.allow_changed_source,
    };
    check_source(&mirror.source, &identity, is_empty, remembered, allow)
        .map_err(|error| failures::source(&error))?;
    state
        .set_source(&identity, &mirror.target)
        .map_err(|error| failures::state(&error))
}

fn connect(
    mirror: &Mirror,
    target: &Target,
    terminal: &Arc<AtomicBool>,
) -> Result<(Box<dyn Connect>, Option<Embedded>), Failure> {
    let options = &mirror.options;
    match target {
        Target::Local(root) => {
            let embedded = Embedded::new(root.clone());
            Ok((Box::new(embedded.clone()), Some(embedded)))
        }
        Target::Remote(remote) => {
            let options = transport::Options {
                rsh: options.rsh.clone(),
                remote_path: options.remote_path.clone(),
                port: options.port,
                identities: options.identities.clone(),
                known_hosts: options.known_hosts.first().cloned(),
                accept_new_host_key: options.accept_new_host_key,
                ..transport::Options::from_environment()
            };
            let connector =
                Connector::load(remote, &options).map_err(|e| failures::transport(&e))?;
            Ok((Box::new(Remote::new(connector, Arc::clone(terminal))), None))
        }
    }
}

fn local(local: config::Local) -> backing::Local {
    match local {
        config::Local::Always => backing::Local::Always,
        config::Local::Close => backing::Local::Close,
        config::Local::Interval(interval) => backing::Local::Interval(interval),
        config::Local::Os => backing::Local::Os,
    }
}

/// Whether this process serves all users, and may open whatever it is asked for.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether OPEN is answered ENOSYS: only a process that may open every file can do without.
#[must_use]
pub fn serves_without_open() -> bool {
    is_root()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_state_itself_is_left_out() {
        let pattern = anchored(".local/a [b]*!#\\/mirrorfs");
        let exclude = Exclude::new(&[pattern], &[]).expect("a pattern");
        assert!(exclude.excludes(Path::new(".local/a [b]*!#\\/mirrorfs"), true));
        assert!(exclude.excludes(Path::new(".local/a [b]*!#\\/mirrorfs/x/index.redb"), false));
        for other in [
            ".local",
            ".local/a b!#\\/mirrorfs",
            "x/.local/a [b]*!#\\/mirrorfs",
        ] {
            assert!(!exclude.excludes(Path::new(other), true), "{other}");
        }
    }

    #[test]
    fn a_walk_goes_by_content_only_where_power_was_lost() {
        let start = |clean, same_boot| {
            Walk::new(Suspects::Files(vec![FileId(7)])).start(LastStop { clean, same_boot })
        };
        assert_eq!(start(false, false).suspects, [FileId(7)]);
        for (clean, same_boot) in [(true, true), (true, false), (false, true)] {
            assert!(start(clean, same_boot).suspects.is_empty());
        }
        let lost = LastStop {
            clean: false,
            same_boot: false,
        };
        assert!(Walk::new(Suspects::Everything).start(lost).by_content);
        assert!(!Walk::new(Suspects::None).start(lost).by_content);
    }
}
