//! `--remote received|durable`: an `fsync` is answered when the replica is as far as was
//! promised. The serving thread hands its answer over and goes on; a task on the daemon's runtime
//! answers, so that a wait holds no serving thread and no lock (invariant I8).
//!
//! The number of waits is bounded: past it an `fsync` is answered as if its time had passed.

use crate::config::{OnDegraded, Remote};
use crate::limits::REMOTE_WAITERS_MAX;
use crate::mount::{FsyncAnswer, RemoteWait};
use rustix::io::Errno;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How far the replica is, as the journal and the shipper know it.
pub trait Reached: Send + Sync + 'static {
    /// A mark of everything that was changed until now.
    fn mark(&self) -> u64;
    /// Whether everything before the mark is at the replica, as far as `level` wants it.
    fn reached(&self, mark: u64, level: Remote) -> bool;
}

/// The part that serving threads see.
pub struct Waiters {
    reached: Arc<dyn Reached>,
    queue: mpsc::Sender<Waiter>,
    policy: Policy,
    degraded: Arc<AtomicBool>,
}

/// What was promised.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// `--remote`; not async.
    pub level: Remote,
    /// `--remote-timeout`.
    pub timeout: Duration,
    /// `--on-degraded`.
    pub on_degraded: OnDegraded,
}

struct Waiter {
    mark: u64,
    deadline: Instant,
    answer: FsyncAnswer,
}

/// The part that runs on the daemon's runtime.
pub struct Attendant {
    queue: mpsc::Receiver<Waiter>,
    reached: Arc<dyn Reached>,
    policy: Policy,
    degraded: Arc<AtomicBool>,
    // By what they wait for; the second number tells apart those that wait for the same.
    waiting: BTreeMap<(u64, u64), FsyncAnswer>,
    // All wait equally long, so the order of arrival is the order of the deadlines.
    deadlines: VecDeque<(Instant, (u64, u64))>,
    arrivals: u64,
    // The newest mark that was answered without having been reached.
    owed: u64,
}

/// Both parts.
#[must_use]
pub fn waiters(reached: Arc<dyn Reached>, policy: Policy) -> (Waiters, Attendant) {
    let (sender, queue) = mpsc::channel(REMOTE_WAITERS_MAX);
    let degraded = Arc::new(AtomicBool::new(false));
    let waiters = Waiters {
        reached: Arc::clone(&reached),
        queue: sender,
        policy,
        degraded: Arc::clone(&degraded),
    };
    let attendant = Attendant {
        queue,
        reached,
        policy,
        degraded,
        waiting: BTreeMap::new(),
        deadlines: VecDeque::new(),
        arrivals: 0,
        owed: 0,
    };
    (waiters, attendant)
}

impl Waiters {
    /// Whether `--on-degraded continue` answers without waiting at the moment.
    #[must_use]
    pub fn degraded(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.degraded)
    }
}

impl RemoteWait for Waiters {
    fn after_fsync(&self, answer: FsyncAnswer) {
        let mark = self.reached.mark();
        if self.reached.reached(mark, self.policy.level) {
            return answer(Ok(()));
        }
        let deadline = Instant::now() + self.policy.timeout;
        match self.queue.try_send(Waiter {
            mark,
            deadline,
            answer,
        }) {
            Ok(()) => {}
            Err(
                mpsc::error::TrySendError::Full(waiter) | mpsc::error::TrySendError::Closed(waiter),
            ) => {
                (waiter.answer)(late(self.policy.on_degraded));
            }
        }
    }
}

/// What an `fsync` is told whose time has passed. EIO is not sticky: the next one waits again.
fn late(on_degraded: OnDegraded) -> Result<(), Errno> {
    match on_degraded {
        OnDegraded::Error => Err(Errno::IO),
        OnDegraded::Continue => Ok(()),
    }
}

impl Attendant {
    /// Answers until all [`Waiters`] are gone and nobody waits. `news` changes whenever the
    /// replica got further.
    pub async fn run(mut self, mut news: watch::Receiver<u64>) {
        let mut open = true;
        while open || !self.waiting.is_empty() {
            let next = self.deadlines.front().map(|(deadline, _)| *deadline);
            tokio::select! {
                waiter = self.queue.recv(), if open && self.waiting.len() < REMOTE_WAITERS_MAX => {
                    match waiter {
                        Some(waiter) => self.take(waiter),
                        None => open = false,
                    }
                }
                changed = news.changed() => {
                    self.answer_reached();
                    if changed.is_err() {
                        // Nothing will ever get further.
                        self.answer_late(None);
                        self.queue.close();
                        while let Some(waiter) = self.queue.recv().await {
                            (waiter.answer)(late(self.policy.on_degraded));
                        }
                        return;
                    }
                }
                () = sleep_until(next) => self.answer_late(Some(Instant::now())),
            }
        }
    }

    fn take(&mut self, waiter: Waiter) {
        // It may have been reached while it was on its way.
        if self.reached.reached(waiter.mark, self.policy.level) {
            return (waiter.answer)(Ok(()));
        }
        if self.degraded.load(Ordering::Relaxed) {
            self.owed = self.owed.max(waiter.mark);
            return (waiter.answer)(late(self.policy.on_degraded));
        }
        let key = (waiter.mark, self.arrivals);
        self.arrivals += 1;
        self.waiting.insert(key, waiter.answer);
        self.deadlines.push_back((waiter.deadline, key));
    }

    fn answer_reached(&mut self) {
        while let Some(first) = self.waiting.first_entry() {
            if !self.reached.reached(first.key().0, self.policy.level) {
                break;
            }
            (first.remove())(Ok(()));
        }
        while self
            .deadlines
            .front()
            .is_some_and(|(_, key)| !self.waiting.contains_key(key))
        {
            self.deadlines.pop_front();
        }
        let degraded = self.degraded.load(Ordering::Relaxed);
        if degraded && self.reached.reached(self.owed, self.policy.level) {
            tracing::info!("the replica has caught up: fsync waits for it again");
            self.degraded.store(false, Ordering::Relaxed);
        }
    }

    /// Answers those whose deadline is not after `now`; all of them without one.
    fn answer_late(&mut self, now: Option<Instant>) {
        while let Some((deadline, key)) = self.deadlines.front().copied() {
            if now.is_some_and(|now| deadline > now) {
                break;
            }
            self.deadlines.pop_front();
            let Some(answer) = self.waiting.remove(&key) else {
                continue;
            };
            self.owed = self.owed.max(key.0);
            if self.policy.on_degraded == OnDegraded::Continue
                && !self.degraded.swap(true, Ordering::Relaxed)
            {
                tracing::warn!("the replica is late: fsync does not wait until it has caught up");
            }
            answer(late(self.policy.on_degraded));
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::AtomicU64;

    #[derive(Default)]
    struct Replica {
        mark: AtomicU64,
        received: AtomicU64,
        durable: AtomicU64,
    }

    impl Reached for Replica {
        fn mark(&self) -> u64 {
            self.mark.fetch_add(1, Ordering::SeqCst) + 1
        }
        fn reached(&self, mark: u64, level: Remote) -> bool {
            match level {
                Remote::Async => true,
                Remote::Received => self.received.load(Ordering::SeqCst) >= mark,
                Remote::Durable => self.durable.load(Ordering::SeqCst) >= mark,
            }
        }
    }

    type Answers = Arc<Mutex<Vec<(u32, Result<(), Errno>)>>>;

    struct Bench {
        replica: Arc<Replica>,
        news: watch::Sender<u64>,
        waiters: Waiters,
        answers: Answers,
    }

    impl Bench {
        fn fsync(&self, number: u32) {
            let answers = Arc::clone(&self.answers);
            self.waiters.after_fsync(Box::new(move |answer| {
                answers.lock().push((number, answer))
            }));
        }
        async fn settle(&self) {
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
        }
        async fn reach(&self, received: u64, durable: u64) {
            self.replica.received.store(received, Ordering::SeqCst);
            self.replica.durable.store(durable, Ordering::SeqCst);
            self.news.send_modify(|n| *n += 1);
            self.settle().await;
        }
        fn take(&self) -> Vec<(u32, Result<(), Errno>)> {
            std::mem::take(&mut *self.answers.lock())
        }
    }

    fn bench(level: Remote, on_degraded: OnDegraded) -> Bench {
        let replica = Arc::new(Replica::default());
        let policy = Policy {
            level,
            timeout: Duration::from_secs(10),
            on_degraded,
        };
        let (waiters, attendant) = waiters(Arc::clone(&replica) as Arc<dyn Reached>, policy);
        let (news, watched) = watch::channel(0);
        tokio::spawn(attendant.run(watched));
        Bench {
            replica,
            news,
            waiters,
            answers: Answers::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_fsync_waits_for_what_was_promised() {
        for (level, received, durable) in [(Remote::Received, 1, 0), (Remote::Durable, 1, 1)] {
            let bench = bench(level, OnDegraded::Error);
            bench.fsync(1);
            bench.fsync(2);
            bench.settle().await;
            assert_eq!(bench.take(), []);
            if level == Remote::Durable {
                bench.reach(2, 0).await;
                assert_eq!(bench.take(), [], "in memory is not durable");
            }
            bench.reach(received, durable).await;
            assert_eq!(bench.take(), [(1, Ok(()))]);
            bench.reach(2, 2).await;
            assert_eq!(bench.take(), [(2, Ok(()))]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_is_an_error_and_not_sticky() {
        let bench = bench(Remote::Durable, OnDegraded::Error);
        bench.fsync(1);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(bench.take(), [(1, Err(Errno::IO))]);
        bench.fsync(2);
        bench.settle().await;
        assert_eq!(bench.take(), [], "the next one waits again");
        bench.reach(2, 2).await;
        assert_eq!(bench.take(), [(2, Ok(()))]);
    }

    #[tokio::test(start_paused = true)]
    async fn continue_waits_once_until_the_replica_has_caught_up() {
        let bench = bench(Remote::Durable, OnDegraded::Continue);
        let degraded = bench.waiters.degraded();
        bench.fsync(1);
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(bench.take(), [(1, Ok(()))]);
        assert!(degraded.load(Ordering::SeqCst));
        bench.fsync(2);
        bench.settle().await;
        assert_eq!(bench.take(), [(2, Ok(()))]);
        bench.reach(1, 1).await;
        assert!(degraded.load(Ordering::SeqCst), "the second is still owed");
        bench.reach(2, 2).await;
        assert!(!degraded.load(Ordering::SeqCst));
        bench.fsync(3);
        bench.settle().await;
        assert_eq!(bench.take(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_bounded_and_all_are_answered_at_the_end() {
        let bench = bench(Remote::Received, OnDegraded::Error);
        // What the task has taken frees the queue once.
        let most = u32::try_from(2 * REMOTE_WAITERS_MAX).expect("small");
        for number in 0..=most {
            bench.fsync(number);
            if number as usize == REMOTE_WAITERS_MAX - 1 {
                bench.settle().await;
            }
        }
        bench.settle().await;
        assert_eq!(bench.take(), [(most, Err(Errno::IO))]);
        drop(bench.news);
        for _ in 0..most {
            tokio::task::yield_now().await;
        }
        assert_eq!(bench.answers.lock().len(), most as usize);
    }
}
