//! A mounted temporary directory, with journal and index, without replica.

use mirrorfs::backing::{self, Backing, Local};
use mirrorfs::exclude::Exclude;
use mirrorfs::journal::{self, Journal};
use mirrorfs::model::{EpochId, FileId};
use mirrorfs::mount::{self, MountError, Mounted, NoRemoteWait, RemoteWait};
use mirrorfs::records::Records;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything in these tests may take.
pub const LIMIT: Duration = Duration::from_secs(30);

pub struct Stand {
    // Dropped in this order: the mount must be gone before its directory.
    pub mounted: Option<Mounted>,
    pub backing: Arc<Backing>,
    pub journal: Arc<Journal>,
    options: mount::Options,
    directory: TempDir,
}

/// Whether this machine can mount; says why not.
pub fn can_mount() -> bool {
    let there = Path::new("/dev/fuse").exists();
    if !there {
        eprintln!("SKIPPED: /dev/fuse is missing, so nothing can be mounted");
    }
    there
}

impl Stand {
    pub fn new(no_open: bool) -> Stand {
        Stand::with(no_open, Local::Os, Arc::new(NoRemoteWait))
    }

    pub fn with(no_open: bool, local: Local, remote: Arc<dyn RemoteWait>) -> Stand {
        let mut stand = Stand::unmounted(no_open, local);
        stand.mounted = Some(stand.mount_at(&stand.point(), remote).expect("a mount"));
        stand
    }

    pub fn unmounted(no_open: bool, local: Local) -> Stand {
        Stand::unmounted_at(Path::new("source"), no_open, local)
    }

    /// Over a source that is there already, if it is an absolute path.
    pub fn unmounted_at(source: &Path, no_open: bool, local: Local) -> Stand {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["source", "point", "state"] {
            std::fs::create_dir(path(name)).expect("a directory");
        }
        let source = directory.path().join(source);
        let index = Records::create(&path("state/index")).expect("an index");
        let options = journal::Options {
            directory: File::open(path("state"))
                .expect("the state directory")
                .into(),
            next_epoch: EpochId(1),
            next_id: FileId::FIRST,
            reserve: Arc::new(|_| Ok(())),
        };
        let (journal, _) = Journal::open(options, index.clone()).expect("a journal");
        let journal = Arc::new(journal);
        let backing = Backing::open(
            backing::Options {
                root: File::open(&source).expect("the source").into(),
                local,
                exclude: Exclude::none(),
                privileged: rustix::process::geteuid().is_root(),
                hold_unlinked: no_open,
            },
            Arc::clone(&journal),
            index,
        )
        .expect("a backing directory");
        let options = mount::Options {
            point: path("point"),
            source: source.clone(),
            target: "nowhere:/x".to_owned(),
            allow_other: false,
            threads: None,
            no_open,
            flush_on_close: local == Local::Close,
            flags: mirrorfs::config::MountFlags::default(),
        };
        Stand {
            mounted: None,
            backing,
            journal,
            options,
            directory,
        }
    }

    pub fn mount_at(
        &self,
        point: &Path,
        remote: Arc<dyn RemoteWait>,
    ) -> Result<Mounted, MountError> {
        let options = mount::Options {
            point: point.to_owned(),
            ..self.options.clone()
        };
        mount::mount(Arc::clone(&self.backing), remote, &options)
    }

    pub fn point(&self) -> PathBuf {
        self.directory.path().join("point")
    }

    pub fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    pub fn mounted(&self) -> &Mounted {
        self.mounted.as_ref().expect("mounted")
    }

    /// The epoch of everything that was done until now.
    pub fn seal(&self) -> Arc<journal::Sealed> {
        self.journal.seal(false).expect("something was done")
    }
}

/// Waits for a condition that has no other way to be waited for.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::yield_now();
    }
}
