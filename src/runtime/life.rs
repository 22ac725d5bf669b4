//! The life of a daemon, and above all its end. Whatever ends it (`mirrorfs umount`, a raw
//! unmount, SIGTERM, SIGINT) leads through the same steps: no new requests of the kernel, a final
//! drain, the state closed clean; and whoever waits for the end hears of it only then.
//!
//! It knows mirror and mount as the two traits below, so that a test can play both.

use crate::config::Remote;
use crate::control::{Exit, Failure, Phase, Receipt, Service, Status};
use crate::limits::{SIGNAL_DRAIN_DEADLINE, UNMOUNT_DRAIN_DEADLINE};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A mirror without its mount: state, walk and shipping.
pub trait Engine: Send + Sync + 'static {
    /// How it stands. What the mount adds is filled in by the caller.
    fn status(&self) -> Status;
    /// Changes whenever it got further in any way.
    fn news(&self) -> watch::Receiver<u64>;
    /// A mark of everything that was changed until now.
    fn mark(&self) -> u64;
    /// Whether everything before the mark is at the replica, as far as `level` wants it.
    fn reached(&self, mark: u64, level: Remote) -> bool;
    /// Which comparison of source and index is complete, if the last one is: what it found is
    /// covered by a mark that is taken afterwards.
    fn settled(&self) -> Option<u64>;
    /// The receipt, if everything before the mark is applied and the source is compared.
    fn drained(&self, mark: u64) -> Option<Receipt>;
    /// Why it does not go on by itself, if it does not.
    fn halted(&self) -> Option<Failure>;
    /// A disk that is in the way for now, though it goes on by itself when there is room.
    fn obstacle(&self) -> Option<Failure>;
    /// Tells it that somebody waits (more) or does not any more.
    fn hurry(&self, more: bool);
    /// Stops at a safe point, leaves the state clean and frees it. Blocks.
    fn close(&self);
}

/// A mount.
pub trait Mount: Send + Sync + 'static {
    /// Who holds it, if anybody does. Blocks.
    fn busy(&self) -> Option<Failure>;
    /// Takes it away. Blocks.
    ///
    /// # Errors
    /// When it is in use.
    fn unmount(&self, lazy: bool) -> Result<(), Failure>;
    /// True once no request of the kernel will come any more.
    fn ended(&self) -> watch::Receiver<bool>;
}

/// What ends a daemon from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM or SIGINT.
    Terminate,
}

/// A running daemon; what the control socket asks of it.
pub struct Life<E, M> {
    engine: Arc<E>,
    mount: RefCell<Option<Arc<M>>>,
    // `mirrorfs umount` asked for the end: the drain may take as long as it takes.
    umount_asked: Cell<bool>,
    // When the final drain gives up.
    deadline: watch::Sender<Option<Instant>>,
    yielding: watch::Sender<bool>,
    outcome: watch::Sender<Option<Result<Receipt, Failure>>>,
}

/// Counts as somebody who waits, as long as it is there.
struct Hurry<'a, E: Engine>(&'a E);

impl<'a, E: Engine> Hurry<'a, E> {
    fn new(engine: &'a E) -> Hurry<'a, E> {
        engine.hurry(true);
        Hurry(engine)
    }
}

impl<E: Engine> Drop for Hurry<'_, E> {
    fn drop(&mut self) {
        self.0.hurry(false);
    }
}

impl<E: Engine, M: Mount> Life<E, M> {
    /// A daemon, with a mount or (to drain what is left) without.
    #[must_use]
    pub fn new(engine: Arc<E>, mount: Option<Arc<M>>) -> Rc<Life<E, M>> {
        Rc::new(Life {
            engine,
            mount: RefCell::new(mount),
            umount_asked: Cell::new(false),
            deadline: watch::Sender::new(None),
            yielding: watch::Sender::new(false),
            outcome: watch::Sender::new(None),
        })
    }

    /// Lives until the end, and says how it came out. With `patience` a daemon without a mount
    /// gives up after this time.
    ///
    /// # Errors
    /// What is owed, and why.
    pub async fn live(
        &self,
        signals: impl AsyncFnMut() -> Signal,
        patience: Option<Duration>,
    ) -> Result<Receipt, Failure> {
        if let Some(patience) = patience {
            self.hasten(patience);
        }
        let outcome = {
            let watching = self.watch_signals(signals);
            let ending = self.end();
            tokio::select! {
                biased;
                outcome = ending => outcome,
                never = watching => match never {},
            }
        };
        let engine = Arc::clone(&self.engine);
        let closed = tokio::task::spawn_blocking(move || engine.close()).await;
        if closed.is_err() {
            tracing::error!("closing the state panicked");
        }
        self.outcome.send_replace(Some(outcome.clone()));
        outcome
    }

    fn hasten(&self, patience: Duration) {
        let at = Instant::now() + patience;
        self.deadline.send_modify(|deadline| {
            *deadline = Some(deadline.map_or(at, |deadline| deadline.min(at)));
        });
    }

    async fn watch_signals(
        &self,
        mut signals: impl AsyncFnMut() -> Signal,
    ) -> std::convert::Infallible {
        let mut heard = 0;
        loop {
            let signal = signals().await;
            heard += 1;
            tracing::info!(?signal, "the daemon is asked to end");
            // Whoever asks again does not want to wait.
            let patience = if heard == 1 {
                SIGNAL_DRAIN_DEADLINE
            } else {
                Duration::ZERO
            };
            self.hasten(patience);
            let mount = self.mount.borrow().clone();
            let Some(mount) = mount else { continue };
            let unmounted = tokio::task::spawn_blocking(move || mount.unmount(true)).await;
            if let Ok(Err(failure)) = unmounted {
                tracing::warn!("{}", failure.line());
            }
        }
    }

    /// Waits for the end of the mount, then drains.
    async fn end(&self) -> Result<Receipt, Failure> {
        let mount = self.mount.borrow().clone();
        if let Some(mount) = mount {
            let mut ended = mount.ended();
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => {}
                () = self.no_more_time(2) => {
                    tracing::warn!("the mount is still in use; the daemon ends all the same");
                }
            }
            self.mount.borrow_mut().take();
            if self.deadline.borrow().is_none() && !self.umount_asked.get() {
                tracing::info!("unmounted: draining what is left");
                self.hasten(UNMOUNT_DRAIN_DEADLINE);
            }
        }
        let mut yielding = self.yielding.subscribe();
        tokio::select! {
            biased;
            drained = self.until_drained() => drained,
            _ = yielding.wait_for(|yielding| *yielding) => {
                Err(self.owed("a new mount takes the rest over"))
            }
            () = self.no_more_time(1) => Err(self.owed("the drain took too long")),
        }
    }

    /// Waits until the deadline is near: `share` of 2 is half of the time before it.
    async fn no_more_time(&self, share: u32) {
        let mut deadlines = self.deadline.subscribe();
        loop {
            let deadline = *deadlines.borrow_and_update();
            let at = deadline
                .map(|at| at - at.saturating_duration_since(Instant::now()) / share * (share - 1));
            tokio::select! {
                () = sleep_until(at) => return,
                changed = deadlines.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn until_drained(&self) -> Result<Receipt, Failure> {
        let began = Instant::now();
        let mut receipt = self.until(|mark| self.engine.drained(mark)).await?;
        receipt.seconds = began.elapsed().as_secs_f64();
        Ok(receipt)
    }

    /// Waits until `reached` has something for a mark of all that was changed before the call,
    /// and of all that a comparison has found which was not complete at the call.
    async fn until<T>(&self, reached: impl Fn(u64) -> Option<T>) -> Result<T, Failure> {
        let _hurry = Hurry::new(&*self.engine);
        let mut news = self.engine.news();
        let mut settled = self.engine.settled();
        let mut mark = self.engine.mark();
        loop {
            news.borrow_and_update();
            let now = self.engine.settled();
            if now.is_some() && now != settled {
                (settled, mark) = (now, self.engine.mark());
            }
            if now.is_some()
                && let Some(reached) = reached(mark)
            {
                return Ok(reached);
            }
            if let Some(halted) = self.engine.halted() {
                return Err(self.owed_because(halted));
            }
            if news.changed().await.is_err() {
                return Err(self.owed("shipping has stopped"));
            }
        }
    }

    fn owed(&self, why: &str) -> Failure {
        let status = self.status();
        let owed = status.owed();
        if let Some(mut obstacle) = self.engine.obstacle() {
            obstacle.causes.splice(0..0, owed);
            return obstacle.context(why);
        }
        let mut failure = Failure::new(Exit::Owed, why);
        failure.causes.extend(owed);
        let error = status.link.last_error.filter(|_| !status.link.connected);
        failure.causes.extend(error);
        failure.next(format!(
            "nothing is lost: `mirrorfs drain {0}` goes on, and so does the next mount",
            status.source
        ))
    }

    fn owed_because(&self, mut halted: Failure) -> Failure {
        if let Some(owed) = self.status().owed() {
            halted.causes.insert(0, owed);
        }
        halted.context("shipping is halted")
    }

    /// Runs `work`, but not longer than `timeout`.
    async fn within<T>(
        &self,
        deadline: Option<Instant>,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            result = work => result,
            () = sleep_until(deadline) => Err(self.owed("the deadline has passed")),
        }
    }

    async fn until_closed(&self) -> Result<Receipt, Failure> {
        let mut outcomes = self.outcome.subscribe();
        let outcome = outcomes.wait_for(Option::is_some).await;
        match outcome.ok().and_then(|outcome| outcome.clone()) {
            Some(outcome) => outcome,
            None => Err(self.owed("the daemon ended")),
        }
    }
}

impl<E: Engine, M: Mount> Service for Life<E, M> {
    fn status(&self) -> Status {
        let mut status = self.engine.status();
        status.mounted = self.mount.borrow().is_some();
        status.pid = Some(std::process::id());
        let busy = matches!(status.state, Phase::Idle | Phase::Shipping);
        let ending = !status.mounted || self.deadline.borrow().is_some();
        if ending && busy {
            status.state = Phase::Draining;
        }
        status
    }

    async fn wait(&self, timeout: Option<Duration>) -> Result<u64, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let work = self.until(|mark| {
            let reached = self.engine.reached(mark, Remote::Durable);
            reached.then(|| self.engine.status().epochs.durable)
        });
        self.within(deadline, work).await
    }

    async fn drain(&self, timeout: Option<Duration>) -> Result<Receipt, Failure> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        if self.mount.borrow().is_none() {
            // The daemon drains already, and ends; the answer comes when the state is free.
            return self.within(deadline, self.until_closed()).await;
        }
        self.within(deadline, self.until_drained()).await
    }

    async fn umount(&self, timeout: Option<Duration>, lazy: bool) -> Result<Receipt, Failure> {
        let began = Instant::now();
        let deadline = timeout.map(|timeout| began + timeout);
        let mount = self.mount.borrow().clone();
        if let Some(mount) = mount {
            if !lazy {
                let mount = Arc::clone(&mount);
                let busy = tokio::task::spawn_blocking(move || mount.busy()).await;
                if let Some(failure) = busy.ok().flatten() {
                    return Err(failure);
                }
            }
            // Most of it while the mount is still usable: nobody can edit the source behind the
            // final drain, which is short then. If it cannot be done, the unmount says so later.
            let _ = self.within(deadline, self.until_drained()).await;
            let asked = self.umount_asked.replace(true);
            let unmounted = tokio::task::spawn_blocking(move || mount.unmount(lazy)).await;
            if let Ok(Err(failure)) = unmounted {
                self.umount_asked.set(asked);
                return Err(failure);
            }
        }
        // Who holds a mount that was detached may hold it for long: what they wrote is applied
        // by then, and they are served on.
        let detached = async {
            match lazy {
                true => self.until_drained().await,
                false => std::future::pending().await,
            }
        };
        let done = async {
            tokio::select! {
                biased;
                outcome = self.until_closed() => outcome,
                drained = detached => drained,
            }
        };
        let done = self.within(deadline, done).await;
        let mut receipt = done.map_err(|failure| {
            failure.context(match self.outcome.borrow().is_none() {
                true => "it is unmounted, and drains on in the background",
                false => "it is unmounted, but not everything is at the replica",
            })
        })?;
        receipt.seconds = began.elapsed().as_secs_f64();
        Ok(receipt)
    }

    async fn give_way(&self) -> Result<(), Failure> {
        if self.mount.borrow().is_some() {
            let status = self.engine.status();
            let what = format!(
                "{} is mounted at {} already",
                status.source, status.mountpoint
            );
            return Err(Failure::new(Exit::Busy, what)
                .next(format!("mirrorfs umount {}", status.mountpoint)));
        }
        self.yielding.send_replace(true);
        let _ = self.until_closed().await;
        Ok(())
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "life_tests.rs"]
mod tests;
