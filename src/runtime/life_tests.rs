//! Ends of daemons that have neither mount nor replica.

use super::*;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

struct FakeEngine {
    applied: AtomicU64,
    mark: AtomicU64,
    walks: AtomicU64,
    halted: Mutex<Option<Failure>>,
    obstacle: Mutex<Option<Failure>>,
    hurried: AtomicU64,
    closed: AtomicBool,
    news: watch::Sender<u64>,
}

impl FakeEngine {
    fn new() -> Arc<FakeEngine> {
        Arc::new(FakeEngine {
            applied: AtomicU64::new(0),
            mark: AtomicU64::new(1),
            walks: AtomicU64::new(1),
            halted: Mutex::new(None),
            obstacle: Mutex::new(None),
            hurried: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            news: watch::Sender::new(0),
        })
    }
    fn apply(&self, mark: u64) {
        self.applied.store(mark, Ordering::SeqCst);
        self.news.send_modify(|n| *n += 1);
    }
}

impl Engine for FakeEngine {
    fn status(&self) -> Status {
        let owed = self.mark() > self.applied.load(Ordering::SeqCst);
        Status {
            pending_operations: u64::from(owed),
            source: "/s".into(),
            ..Status::default()
        }
    }
    fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }
    fn mark(&self) -> u64 {
        self.mark.load(Ordering::SeqCst)
    }
    fn reached(&self, mark: u64, _: Remote) -> bool {
        self.applied.load(Ordering::SeqCst) >= mark
    }
    fn settled(&self) -> Option<u64> {
        Some(self.walks.load(Ordering::SeqCst)).filter(|&walks| walks > 0)
    }
    fn drained(&self, mark: u64) -> Option<Receipt> {
        self.reached(mark, Remote::Durable).then(|| Receipt {
            epoch: mark,
            ..Receipt::default()
        })
    }
    fn halted(&self) -> Option<Failure> {
        self.halted.lock().clone()
    }
    fn obstacle(&self) -> Option<Failure> {
        self.obstacle.lock().clone()
    }
    fn hurry(&self, more: bool) {
        match more {
            true => self.hurried.fetch_add(1, Ordering::SeqCst),
            false => self.hurried.fetch_sub(1, Ordering::SeqCst),
        };
    }
    fn close(&self) {
        assert!(!self.closed.swap(true, Ordering::SeqCst), "closed once");
    }
}

struct FakeMount {
    held: AtomicBool,
    ended: watch::Sender<bool>,
}

impl Mount for FakeMount {
    fn busy(&self) -> Option<Failure> {
        let held = self.held.load(Ordering::SeqCst);
        held.then(|| Failure::new(Exit::Busy, "sh (7) stands in /s"))
    }
    fn unmount(&self, lazy: bool) -> Result<(), Failure> {
        match self.busy() {
            Some(failure) if !lazy => Err(failure),
            Some(_) => Ok(()),
            None => {
                self.ended.send_replace(true);
                Ok(())
            }
        }
    }
    fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }
}

struct Stage {
    engine: Arc<FakeEngine>,
    mount: Arc<FakeMount>,
    life: Rc<Life<FakeEngine, FakeMount>>,
    signals: tokio::sync::mpsc::UnboundedSender<Signal>,
    outcome: tokio::task::JoinHandle<Result<Receipt, Failure>>,
}

fn stage(mounted: bool, patience: Option<Duration>) -> Stage {
    let engine = FakeEngine::new();
    let mount = Arc::new(FakeMount {
        held: AtomicBool::new(false),
        ended: watch::Sender::new(false),
    });
    let life = Life::new(Arc::clone(&engine), mounted.then(|| Arc::clone(&mount)));
    let (signals, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let lives = Rc::clone(&life);
    let outcome = tokio::task::spawn_local(async move {
        let next = async || match heard.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        };
        lives.live(next, patience).await
    });
    Stage {
        engine,
        mount,
        life,
        signals,
        outcome,
    }
}

/// Runs it with time that passes when nothing else happens.
fn play<F: Future>(scene: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async { scene().await })
}

fn soon() -> tokio::time::Sleep {
    tokio::time::sleep(Duration::from_secs(1))
}

#[test]
fn umount_ends_with_a_receipt_when_the_state_is_closed() {
    play(|| async {
        let stage = stage(true, None);
        let life = Rc::clone(&stage.life);
        let asked = tokio::task::spawn_local(async move { life.umount(None, false).await });
        soon().await;
        assert!(
            !*stage.mount.ended.borrow(),
            "it drains while it is mounted"
        );
        assert_eq!(stage.engine.hurried.load(Ordering::SeqCst), 1);
        stage.engine.mark.store(2, Ordering::SeqCst);
        stage.engine.apply(1);
        soon().await;
        assert!(*stage.mount.ended.borrow());
        assert!(!asked.is_finished(), "what was written last is owed");
        assert_eq!(stage.life.status().state, Phase::Draining);
        stage.engine.apply(2);
        let receipt = asked.await.expect("no panic").expect("a receipt");
        assert_eq!(receipt.epoch, 2);
        assert!(receipt.seconds >= 2.0);
        assert!(
            stage.engine.closed.load(Ordering::SeqCst),
            "the state is free by then"
        );
        assert_eq!(
            stage
                .outcome
                .await
                .expect("no panic")
                .expect("a receipt")
                .epoch,
            2
        );
        assert_eq!(stage.engine.hurried.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn umount_past_its_deadline_unmounts_and_drains_on() {
    play(|| async {
        let stage = stage(true, None);
        let failure = stage
            .life
            .umount(Some(Duration::from_secs(3)), false)
            .await
            .expect_err("something is owed");
        assert_eq!(failure.exit, Exit::Owed);
        assert!(failure.line().contains("1 changes"), "{failure}");
        assert!(*stage.mount.ended.borrow());
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!stage.outcome.is_finished(), "it drains on, without an end");
        let life = Rc::clone(&stage.life);
        let again = tokio::task::spawn_local(async move { life.umount(None, false).await });
        soon().await;
        stage.engine.apply(1);
        assert_eq!(again.await.expect("no panic").expect("a receipt").epoch, 1);
    });
}

#[test]
fn a_busy_mount_stays() {
    play(|| async {
        let stage = stage(true, None);
        stage.mount.held.store(true, Ordering::SeqCst);
        stage.engine.apply(1);
        let failure = stage.life.umount(None, false).await.expect_err("busy");
        assert_eq!(failure.exit, Exit::Busy);
        assert!(failure.line().contains("sh (7)"));
        assert!(stage.life.status().mounted && !stage.outcome.is_finished());
        assert_eq!(
            stage.life.give_way().await.expect_err("mounted").exit,
            Exit::Busy
        );
    });
}

#[test]
fn a_raw_unmount_drains_with_a_deadline() {
    play(|| async {
        let Stage {
            mount,
            outcome,
            engine,
            ..
        } = stage(true, None);
        let began = Instant::now();
        mount.ended.send_replace(true);
        let failure = outcome.await.expect("no panic").expect_err("owed");
        assert_eq!(failure.exit, Exit::Owed);
        assert_eq!(began.elapsed().as_secs(), UNMOUNT_DRAIN_DEADLINE.as_secs());
        assert!(engine.closed.load(Ordering::SeqCst));
    });
}

#[test]
fn a_signal_detaches_and_drains_with_a_deadline() {
    play(|| async {
        let Stage {
            signals,
            outcome,
            mount,
            ..
        } = stage(true, None);
        let began = Instant::now();
        mount.held.store(true, Ordering::SeqCst);
        signals.send(Signal::Terminate).expect("it lives");
        tokio::time::sleep(SIGNAL_DRAIN_DEADLINE / 2 - Duration::from_secs(1)).await;
        assert!(!outcome.is_finished(), "those who hold it are still served");
        let failure = outcome.await.expect("no panic").expect_err("owed");
        assert_eq!(failure.exit, Exit::Owed);
        assert_eq!(began.elapsed().as_secs(), SIGNAL_DRAIN_DEADLINE.as_secs());
    });
}

#[test]
fn a_second_signal_does_not_wait() {
    play(|| async {
        let Stage {
            signals, outcome, ..
        } = stage(true, None);
        let began = Instant::now();
        for _ in 0..2 {
            signals.send(Signal::Terminate).expect("it lives");
            soon().await;
        }
        outcome.await.expect("no panic").expect_err("owed");
        assert!(began.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn a_halted_mirror_does_not_make_anybody_wait() {
    play(|| async {
        let stage = stage(true, None);
        *stage.engine.halted.lock() = Some(Failure::new(Exit::Refused, "a foreign replica"));
        let wait = stage.life.wait(None).await.expect_err("halted");
        assert_eq!(wait.exit, Exit::Refused);
        let failure = stage.life.umount(None, false).await.expect_err("halted");
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.line().contains("a foreign replica"));
        assert!(*stage.mount.ended.borrow() && stage.engine.closed.load(Ordering::SeqCst));
    });
}

#[test]
fn a_drain_without_a_mount_gives_way_to_a_mount() {
    play(|| async {
        let stage = stage(false, None);
        soon().await;
        assert_eq!(stage.life.status().state, Phase::Draining);
        stage.life.give_way().await.expect("nothing is mounted");
        assert!(
            stage.engine.closed.load(Ordering::SeqCst),
            "the state is free"
        );
        assert_eq!(
            stage
                .outcome
                .await
                .expect("no panic")
                .expect_err("owed")
                .exit,
            Exit::Owed
        );
    });
}

#[test]
fn a_drain_without_a_mount_has_its_deadline() {
    play(|| async {
        let Stage { outcome, .. } = stage(false, Some(Duration::from_secs(5)));
        let began = Instant::now();
        assert_eq!(
            outcome.await.expect("no panic").expect_err("owed").exit,
            Exit::Owed
        );
        assert_eq!(began.elapsed().as_secs(), 5);
        let Stage {
            outcome, engine, ..
        } = stage(false, Some(Duration::from_secs(5)));
        engine.apply(1);
        assert_eq!(
            outcome.await.expect("no panic").expect("a receipt").epoch,
            1
        );
    });
}

#[test]
fn wait_and_drain_leave_the_mount_alone() {
    play(|| async {
        let stage = stage(true, None);
        let second = Some(Duration::from_secs(1));
        assert_eq!(
            stage.life.wait(second).await.expect_err("owed").exit,
            Exit::Owed
        );
        assert_eq!(
            stage.life.drain(second).await.expect_err("owed").exit,
            Exit::Owed
        );
        stage.engine.apply(1);
        stage.life.wait(second).await.expect("durable");
        assert_eq!(stage.life.drain(second).await.expect("a receipt").epoch, 1);
        assert!(stage.life.status().mounted && !stage.outcome.is_finished());
    });
}

#[test]
fn a_full_disk_is_named_at_the_deadline() {
    play(|| async {
        let stage = stage(true, None);
        let full = Failure::new(Exit::ReplicaDisk, "no space left").next("make room");
        *stage.engine.obstacle.lock() = Some(full);
        let failure = stage
            .life
            .drain(Some(Duration::from_secs(5)))
            .await
            .expect_err("full");
        assert_eq!(
            (failure.exit, failure.next.as_deref()),
            (Exit::ReplicaDisk, Some("make room"))
        );
        assert!(failure.line().contains("1 changes") && failure.line().contains("no space left"));
        *stage.engine.obstacle.lock() = None;
        stage.engine.apply(1);
        stage.life.drain(None).await.expect("it goes on");
    });
}

#[test]
fn a_lazy_umount_leaves_those_who_hold_it_alone() {
    play(|| async {
        let stage = stage(true, None);
        stage.mount.held.store(true, Ordering::SeqCst);
        stage.engine.apply(1);
        assert_eq!(
            stage
                .life
                .umount(None, true)
                .await
                .expect("a receipt")
                .epoch,
            1
        );
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!stage.outcome.is_finished(), "they are served");
        stage.engine.mark.store(2, Ordering::SeqCst);
        stage.mount.ended.send_replace(true);
        soon().await;
        stage.engine.apply(2);
        assert_eq!(
            stage
                .outcome
                .await
                .expect("no panic")
                .expect("a receipt")
                .epoch,
            2
        );
    });
}

#[test]
fn what_a_comparison_finds_is_drained_too() {
    play(|| async {
        let stage = stage(false, None);
        stage.engine.walks.store(0, Ordering::SeqCst);
        stage.engine.apply(1);
        soon().await;
        // The comparison found something, then was complete.
        stage.engine.mark.store(2, Ordering::SeqCst);
        stage.engine.walks.store(1, Ordering::SeqCst);
        stage.engine.apply(1);
        soon().await;
        assert!(!stage.outcome.is_finished());
        // So did another one, begun and ended while nobody looked.
        stage.engine.mark.store(3, Ordering::SeqCst);
        stage.engine.walks.store(2, Ordering::SeqCst);
        stage.engine.apply(2);
        soon().await;
        assert!(!stage.outcome.is_finished());
        stage.engine.apply(3);
        assert_eq!(
            stage
                .outcome
                .await
                .expect("no panic")
                .expect("a receipt")
                .epoch,
            3
        );
    });
}
