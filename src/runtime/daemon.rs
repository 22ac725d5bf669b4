//! `mirrorfs mount` and `mirrorfs drain`: from the command line to a daemon that lives.

use super::engine::{Engine, serves_without_open};
use super::life::{Engine as _, Life, Mount, Signal};
use super::log::{RotatingLog, to_file, to_stderr};
use super::places::{self, Places};
use super::ready::Ready;
use super::waiters::{Attendant, Policy, waiters};
use super::{MountRequest, failures, process, registry};
use crate::config::{Local, MIRROR_VERSION, Mirror, Remote, beneath};
use crate::control::{Client, Exit, Failure, Receipt, Reply, Request, Server, Service, Status};
use crate::mount::{self, Mounted, NoRemoteWait, RemoteWait, holders, table};
use crate::transport::Target;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

/// How long the last answers may take after the end.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How long a process that has given its state up may take to be gone.
const LAST_WORDS: Duration = Duration::from_secs(15);
/// How often a drain in the foreground shows how it stands.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// Mounts, and lives until the end of the mount.
///
/// # Errors
/// Why there is no mount; after it was usable, what is still owed.
pub fn mount(request: MountRequest, ready: Ready) -> Result<(), Failure> {
    if ready.is_foreground() {
        to_stderr(request.verbose, "info");
    }
    let target = Target::parse(&request.target).map_err(|e| failures::transport(&e))?;
    refuse_mounted(&request)?;
    let places = places::check(&request.source, &target, request.mountpoint.as_deref())
        .map_err(|error| error.failure())?;
    let mirror = describe(request.state_root.as_deref(), &places, request.options)?;
    make_way(&mirror)?;
    prepare_process();
    let engine = open_engine(mirror, &places.target)?;
    if !ready.is_foreground() {
        let log = engine
            .state()
            .directory()
            .try_clone_to_owned()
            .and_then(RotatingLog::open);
        to_file(
            log.map_err(|error| failures::local(&error))?,
            request.verbose,
        );
    }
    let outcome = run(&engine, ready);
    // However it ended, also before there was a mount: the state is left in order.
    engine.close();
    outcome
}

fn run(engine: &Arc<Engine>, ready: Ready) -> Result<(), Failure> {
    engine.first_contact()?;
    let mirror = engine.mirror();
    let in_use = who_is_in(&mirror.source, &mirror.mountpoint);
    // Known as soon as it can be asked, and before anything of it lies under the mount.
    registry::write(engine.state().directory(), mirror)
        .map_err(|error| failures::local(&error).context("cannot describe the mirror"))?;
    registry::announce(&mirror.state_dir);
    let runtime = runtime()?;
    let server = {
        let _inside = runtime.enter();
        bind(engine, Some(&mirror.mountpoint))?
    };
    let (remote, attendant) = remote_wait(engine);
    let mounted = mount::mount(engine.backing(), remote, &mount_options(mirror))
        .map_err(|error| failures::mounting(&error))?;
    engine.start_walk()?;
    tell_about(&in_use, mirror);
    let told = ready.tell();
    let mounted = Arc::new(Kernel::new(mounted));
    if let Err(error) = told {
        tracing::error!(%error, "whoever wanted the mount is gone");
        let _ = mounted.unmount(true);
    }
    let life = Life::new(Arc::clone(engine), Some(Arc::clone(&mounted)));
    let local = LocalSet::new();
    local.spawn_local(mounted.follow());
    if let Some(attendant) = attendant {
        local.spawn_local(attendant.run(engine.news()));
    }
    local.spawn_local(engine.follow_walk());
    let outcome = local.block_on(&runtime, live(life, server, None, &mut |_| {}));
    runtime.shutdown_background();
    let receipt = outcome.inspect_err(|failure| tracing::error!("{}", failure.line()))?;
    tracing::info!(
        epoch = receipt.epoch,
        root_hash = receipt.root_hash,
        "drained"
    );
    Ok(())
}

/// Drains what a mount left behind, in this process.
///
/// # Errors
/// What is still owed, and why.
pub fn drain(
    mut mirror: Mirror,
    timeout: Option<Duration>,
    verbose: u8,
    show: &mut dyn FnMut(&Status),
) -> Result<Receipt, Failure> {
    to_stderr(verbose, "warn");
    let target = Target::parse(&mirror.target).map_err(|e| failures::transport(&e))?;
    let places = places::check(&mirror.source, &target, None).map_err(|error| error.failure())?;
    mirror.source = places.source;
    mirror.pid = std::process::id();
    prepare_process();
    let began = std::time::Instant::now();
    let engine = open_engine(mirror, &places.target)?;
    let drained = (|| {
        engine.first_contact()?;
        let runtime = runtime()?;
        let server = {
            let _inside = runtime.enter();
            bind(&engine, None)?
        };
        engine.start_walk()?;
        let life: Rc<Life<Engine, Kernel>> = Life::new(Arc::clone(&engine), None);
        let patience = timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let local = LocalSet::new();
        local.spawn_local(engine.follow_walk());
        let outcome = local.block_on(&runtime, live(life, server, patience, show));
        runtime.shutdown_background();
        outcome
    })();
    engine.close();
    let mut receipt = drained?;
    receipt.seconds = began.elapsed().as_secs_f64();
    Ok(receipt)
}

/// Answers the control socket until the life has ended.
async fn live(
    life: Rc<Life<Engine, Kernel>>,
    server: Server,
    patience: Option<Duration>,
    show: &mut dyn FnMut(&Status),
) -> Result<Receipt, Failure> {
    let clients = server.clients();
    let serving = tokio::task::spawn_local(server.run(Rc::clone(&life)));
    let (mut terminate, mut interrupt) = match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => return Err(failures::local(&error)),
    };
    // A terminal that is closed is no reason to end.
    let _hangups = signal(SignalKind::hangup());
    let next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Signal::Terminate
    };
    let outcome = {
        let mut living = std::pin::pin!(life.live(next, patience));
        let mut ticks = tokio::time::interval(SHOW_INTERVAL);
        loop {
            tokio::select! {
                outcome = &mut living => break outcome,
                _ = ticks.tick() => show(&life.status()),
            }
        }
    };
    serving.abort();
    let _ = serving.await;
    let _ = tokio::time::timeout(LAST_ANSWERS, clients.gone()).await;
    outcome
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failures::local(&error).context("cannot start the runtime"))
}

/// Opens the control socket. Below its own mountpoint a state directory is seen through the mount,
/// where a socket leads nowhere.
fn bind(engine: &Engine, mountpoint: Option<&Path>) -> Result<Server, Failure> {
    let state = engine.state();
    let covered = mountpoint.is_some_and(|point| beneath(state.path(), point));
    let bound = match covered {
        true => Server::bind_outside(state.path()),
        false => state
            .directory()
            .try_clone_to_owned()
            .and_then(Server::bind),
    };
    bound.map_err(|error| failures::local(&error).context("cannot open the control socket"))
}

/// A source or mountpoint that a living daemon of this user serves is said to be so before
/// anything is asked of it.
fn refuse_mounted(request: &MountRequest) -> Result<(), Failure> {
    let wanted = request.mountpoint.as_ref().unwrap_or(&request.source);
    let Ok(place) = table::resolve(wanted) else {
        return Ok(());
    };
    if !(place.mount.is_ours() && place.is_mount_point()) {
        return Ok(());
    }
    let known = registry::Registry::read(request.state_root.as_deref());
    let mirror = known
        .mirrors()
        .iter()
        .find(|mirror| mirror.mountpoint == place.path);
    match mirror.filter(|mirror| lives(mirror)) {
        None => Ok(()),
        Some(mirror) => {
            let (source, target) = (mirror.source.display(), &mirror.target);
            let what = format!(
                "{} is mounted already: {source} -> {target}",
                place.path.display()
            );
            Err(Failure::new(Exit::Busy, what)
                .next(format!("mirrorfs umount {}", place.path.display())))
        }
    }
}

/// Whether a daemon answers. One that was killed just now still has its socket, its mount and its
/// lock for a moment: its end is waited for, so that nobody meets them.
fn lives(mirror: &Mirror) -> bool {
    let Ok(client) = Client::connect(&mirror.state_dir) else {
        return false;
    };
    let answers = client.call(&Request::Status, &mut |_| {}).is_ok();
    if !answers {
        process::wait_for_owner(&mirror.state_dir, LAST_WORDS);
    }
    answers
}

/// Detaches the mount of a dead daemon at exactly this path. Whether there was one.
#[must_use]
pub fn detach_dead(path: &Path) -> bool {
    let dead = |place: &table::Place| place.mount.is_ours() && place.is_mount_point();
    let Ok(before) = table::resolve(path) else {
        return false;
    };
    dead(&before) && table::detach_stale(&before.path).is_ok()
}

fn describe(
    state_root: Option<&Path>,
    places: &Places,
    options: crate::config::Options,
) -> Result<Mirror, Failure> {
    let target = places.target.to_string();
    let root = state_root
        .map(Path::to_owned)
        .or_else(registry::default_root);
    let root = root.ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            "there is no place for the state: HOME is not set",
        )
        .next("give --state-dir")
    })?;
    let root = canonical_root(&root)?;
    let mountpoint = places
        .mountpoint
        .clone()
        .unwrap_or_else(|| places.source.clone());
    Ok(Mirror {
        version: MIRROR_VERSION,
        state_dir: registry::state_dir(&root, &places.source, &target),
        source: places.source.clone(),
        target,
        mountpoint,
        pid: std::process::id(),
        options,
    })
}

fn canonical_root(root: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .and_then(|()| root.canonicalize())
        .map_err(|error| {
            failures::local(&error)
                .context(format!(
                    "cannot make the state directory {}",
                    root.display()
                ))
                .next("give another --state-dir")
        })
}

/// Another process may be draining what an earlier mount left: this one takes over.
fn make_way(mirror: &Mirror) -> Result<(), Failure> {
    let Ok(client) = Client::connect(&mirror.state_dir) else {
        return Ok(());
    };
    match client.call(&Request::Yield, &mut |_| {}) {
        Ok(Reply::Failed { failure }) => Err(failure),
        Ok(_) => Ok(()),
        // If it does not end, the lock of the state directory says so.
        Err(error) => {
            tracing::debug!(%error, "the process that drains went away");
            Ok(())
        }
    }
}

/// Opens the mirror. A process that served it may have said goodbye and not be gone yet: it is
/// waited for.
fn open_engine(mirror: Mirror, target: &Target) -> Result<Arc<Engine>, Failure> {
    let opened = match Engine::open(mirror.clone(), target) {
        Err(failure) if failure.exit == Exit::Busy => {
            if lives(&mirror) {
                return Err(failure);
            }
            process::wait_for_owner(&mirror.state_dir, LAST_WORDS);
            Engine::open(mirror, target)
        }
        opened => opened,
    };
    opened.map(Arc::new)
}

/// Nothing that is created is to lose bits, and many descriptors may be needed.
fn prepare_process() {
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
}

fn mount_options(mirror: &Mirror) -> mount::Options {
    mount::Options {
        point: mirror.mountpoint.clone(),
        source: mirror.source.clone(),
        target: mirror.target.clone(),
        // As root for all users; default_permissions holds in any case.
        allow_other: mirror.options.allow_other,
        threads: None,
        no_open: serves_without_open(),
        flush_on_close: mirror.options.local == Local::Close,
        flags: mirror.options.flags,
    }
}

fn remote_wait(engine: &Arc<Engine>) -> (Arc<dyn RemoteWait>, Option<Attendant>) {
    let options = &engine.mirror().options;
    if options.remote == Remote::Async {
        return (Arc::new(NoRemoteWait), None);
    }
    let policy = Policy {
        level: options.remote,
        timeout: options.remote_timeout,
        on_degraded: options.on_degraded,
    };
    let (waiters, attendant) = waiters(Arc::clone(engine) as Arc<_>, policy);
    engine.show_degraded(waiters.degraded());
    (Arc::new(waiters), Some(attendant))
}

/// Who is at work in a source that is about to be mounted over.
fn who_is_in(source: &Path, mountpoint: &Path) -> Option<holders::Holders> {
    if source != mountpoint {
        return None;
    }
    let place = table::resolve(source).ok()?;
    let mut holders = holders::of_directory(place.mount.device, source);
    // The process that waits for this one uses nothing of it but, maybe, the program.
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    holders
        .processes
        .retain(|holder| i32::try_from(holder.pid).ok() != parent);
    Some(holders).filter(|holders| !holders.processes.is_empty())
}

/// They keep seeing what is underneath.
fn tell_about(in_use: &Option<holders::Holders>, mirror: &Mirror) {
    let Some(holders) = in_use else { return };
    let source = mirror.source.display();
    eprintln!("mirrorfs: these were in {source} before it was mounted over, and still work in the");
    eprintln!("  directory underneath, where their changes are found only by the next mount:");
    for holder in &holders.processes {
        let (name, pid, path) = (&holder.command, holder.pid, holder.path.display());
        eprintln!("  {name} ({pid}) {} {path}", holder.usage);
    }
    eprintln!("  next: in a shell: cd \"$PWD\"; let other programs open their files again");
}

/// A mount, as a life knows it.
struct Kernel {
    mounted: Mounted,
    ended: watch::Sender<bool>,
}

impl Kernel {
    fn new(mounted: Mounted) -> Kernel {
        Kernel {
            mounted,
            ended: watch::Sender::new(false),
        }
    }

    /// Follows the session to its end.
    fn follow(self: &Arc<Kernel>) -> impl Future<Output = ()> + use<> {
        let kernel = Arc::clone(self);
        async move {
            let mut session = kernel.mounted.ended();
            let ended = session
                .wait_for(|session| *session != mount::Session::Serving)
                .await;
            if let Ok(session) = ended
                && let mount::Session::Failed(error) = &*session
            {
                tracing::error!(error, "the mount broke");
            }
            kernel.ended.send_replace(true);
        }
    }
}

impl Mount for Kernel {
    fn busy(&self) -> Option<Failure> {
        let holders = self.mounted.holders();
        if holders.processes.is_empty() && holders.mounts.is_empty() {
            return None;
        }
        let point = self.mounted.entry().point.clone();
        Some(failures::unmounting(&mount::UnmountError::Busy {
            point,
            holders,
        }))
    }

    fn unmount(&self, lazy: bool) -> Result<(), Failure> {
        self.mounted
            .unmount(lazy)
            .map_err(|error| failures::unmounting(&error))
    }

    fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }
}
