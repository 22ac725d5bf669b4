//! A primary without mount and link: what is sealed is planned and applied at once.

use super::replica::{Replica, Tree, assert_same, real_tree};
use mirrorfs::backing::{self, Backing, Local};
use mirrorfs::disk::Snapshot;
use mirrorfs::exclude::Exclude;
use mirrorfs::journal::{self, Journal};
use mirrorfs::model::{Commit, Entry, EpochId, FileId, Incarnation, Timestamp};
use mirrorfs::plan::{Planner, Source};
use mirrorfs::reconcile::{Mirrored, Phase, Start, Walker};
use mirrorfs::records::{Durability, Records};
use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

/// Everything that lives as long as a mount.
pub struct Running {
    pub backing: Arc<Backing>,
    pub walker: Walker,
    journal: Arc<Journal>,
    planner: Planner,
}

pub struct Primary {
    pub running: Option<Running>,
    pub replica: Replica,
    pub exclude: Exclude,
    index: Records,
    reserved: Arc<Mutex<FileId>>,
    epoch: EpochId,
    directory: TempDir,
}

struct Real<'a>(&'a Backing);

impl Source for Real<'_> {
    fn open(&self, id: FileId) -> io::Result<File> {
        self.0.open_object(id)
    }
    fn snapshot(&self, id: FileId) -> io::Result<Snapshot> {
        self.0.snapshot(id)
    }
}

impl Primary {
    pub fn new() -> Primary {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["source", "state"] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        let index = Records::create(&directory.path().join("state/index")).expect("an index");
        Primary {
            running: None,
            replica: Replica::default(),
            exclude: Exclude::none(),
            index,
            reserved: Arc::new(Mutex::new(FileId::FIRST)),
            epoch: EpochId(0),
            directory,
        }
    }

    pub fn source(&self) -> PathBuf {
        self.directory.path().join("source")
    }

    pub fn index(&self) -> &Records {
        &self.index
    }

    /// A mount begins: everything is walked.
    pub fn start(&mut self) {
        let state = File::open(self.directory.path().join("state")).expect("the state directory");
        let reserved = Arc::clone(&self.reserved);
        let next_id = *reserved.lock();
        let options = journal::Options {
            directory: state.into(),
            next_epoch: self.epoch.next(),
            next_id,
            reserve: Arc::new(move |id| {
                *reserved.lock() = id;
                Ok(())
            }),
        };
        let (journal, _) = Journal::open(options, self.index.clone()).expect("a journal");
        let journal = Arc::new(journal);
        let backing = Backing::open(
            backing::Options {
                root: File::open(self.source()).expect("the source").into(),
                local: Local::Os,
                exclude: self.exclude.clone(),
                privileged: false,
                hold_unlinked: false,
            },
            Arc::clone(&journal),
            self.index.clone(),
        )
        .expect("a backing directory");
        let trees = Mirrored::new(Arc::clone(&backing), Arc::clone(&journal));
        let everything = Start {
            walk: true,
            ..Start::default()
        };
        let walker = Walker::start(Arc::new(trees), everything).expect("a walker");
        self.running = Some(Running {
            backing,
            walker,
            journal,
            planner: Planner::new(),
        });
    }

    /// The mount ends; what is not shipped is forgotten, as by a crash.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Until what was written so far is older than the clock can tell apart.
    pub fn let_the_clock_tick(&self) {
        let probe = || {
            tempfile::tempfile_in(self.directory.path())
                .and_then(|file| file.metadata()?.modified())
        };
        let first = probe().expect("a file");
        let passed = || {
            probe()
                .expect("a file")
                .duration_since(first)
                .unwrap_or_default()
        };
        while passed() < 3 * mirrorfs::disk::tick() {
            std::thread::yield_now();
        }
    }

    pub fn backing(&self) -> &Backing {
        &self.running.as_ref().expect("running").backing
    }

    /// Waits until the known tree is the real one.
    pub fn walk(&self) {
        let walker = &self.running.as_ref().expect("running").walker;
        let mut watch = walker.watch();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let complete = watch.wait_for(|progress| {
                assert!(progress.phase != Phase::WaitingToRetry, "{progress:?}");
                walker.is_complete()
            });
            tokio::time::timeout(LIMIT, complete)
                .await
                .expect("in time")
                .expect("a walker");
        });
    }

    /// Seals, plans and applies what there is; the entries that it took.
    pub fn ship(&mut self) -> Vec<(Entry, Option<Vec<u8>>)> {
        let running = self.running.as_mut().expect("running");
        let mark = running.walker.mark();
        let Some(sealed) = running.journal.seal(mark.is_some()) else {
            return Vec::new();
        };
        let mut entries = Vec::new();
        let consistent = mark.is_some_and(|mark| running.walker.holds(mark));
        let planned = running
            .planner
            .epoch(
                &*sealed,
                &Real(&running.backing),
                &self.index,
                &mut |entry, bytes| {
                    entries.push((entry, bytes.map(<[u8]>::to_vec)));
                    Ok(())
                },
            )
            .expect("a plan");
        assert!(sealed.finish_reading());
        let mut change = self.index.begin().expect("a change");
        for (entry, _) in &entries {
            assert!(entry.is_valid(), "{entry:?}");
            change.entry(entry).expect("an entry");
        }
        for (id, stamp) in &planned.stamps {
            change.stamp(*id, *stamp).expect("a stamp");
        }
        let commit = Commit {
            epoch: sealed.epoch(),
            parent: self.epoch,
            incarnation: Incarnation(1),
            sealed_at: Timestamp::default(),
            consistent,
            entries: entries.len() as u64,
            digest: [0; 32],
        };
        let applied = change.commit(&commit, Durability::None).expect("a commit");
        self.epoch = sealed.epoch();
        running.journal.committed(sealed.epoch());
        running.planner.committed();
        self.replica.apply(&entries, &applied.gone);
        if consistent {
            // Nobody is at work while this is called.
            self.check();
        }
        entries
    }

    /// Walks, ships, and compares with the real tree.
    pub fn settle(&mut self) -> Vec<(Entry, Option<Vec<u8>>)> {
        self.walk();
        let entries = self.ship();
        self.check();
        entries
    }

    pub fn check(&self) {
        assert_same(&self.replica.tree(), &self.real());
    }

    /// The real tree, without what is excluded.
    fn real(&self) -> Tree {
        let mut tree = real_tree(&self.source());
        let excluded: Vec<PathBuf> = tree
            .keys()
            .filter(|path| {
                self.exclude
                    .excludes(path, self.source().join(path).is_dir())
            })
            .cloned()
            .collect();
        for path in excluded {
            tree.remove(&path);
        }
        tree
    }
}
