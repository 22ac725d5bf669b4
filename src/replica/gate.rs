//! Whether a primary may use a directory, and what of it is there.

use super::ReplicaError;
use super::attributes::Policy;
use super::engine::{Engine, Found};
use super::error::Doing;
use super::home::{Home, Identity, open_root};
use super::link::Stop;
use super::lock::{self, Lock};
use super::redo::names;
use crate::limits::APPLY_STACK_BYTES;
use crate::model::{EpochId, RESERVED_NAME, Uuid};
use crate::records::{self, Records};
use crate::wire::{Hello, PROTOCOL_VERSION, Refusal};
use rustix::fs::Mode;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A replica that a primary may use.
pub(super) struct Admitted {
    pub engine: Engine,
    pub found: Found,
    pub identity: Identity,
    pub version: u16,
    pub fresh: bool,
    pub privileged: bool,
    pub lock: Lock,
}

/// Lets a primary in, or says why not.
pub(super) fn admit(
    root: &Path,
    hello: &Hello,
    fake_super: bool,
    stop: &Stop,
) -> Result<Admitted, ReplicaError> {
    if hello.version == 0 {
        let message = format!(
            "the primary ({}) speaks no version of the protocol that this replica ({}) speaks",
            hello.program,
            env!("CARGO_PKG_VERSION")
        );
        return Err(ReplicaError::refused(Refusal::Version, message));
    }
    let home = open_home(root, hello)?;
    let follows = |identity: &Identity| {
        identity.primary == hello.primary
            && (identity.incarnation, identity.session) <= (hello.incarnation, hello.session)
    };
    let lock = lock::acquire(
        &home,
        stop,
        || matches!(home.identity(), Ok(Some(identity)) if follows(&identity)),
    )?;
    let fake_super = fake_super || hello.fake_super;
    let policy = Policy::of_process(fake_super);
    let (mut identity, mut fresh) = identify(root, &home, hello)?;
    identity.fake_super = fake_super;
    let records = open_records(&home, &mut identity, hello)?;
    home.write_format()?;
    home.set_identity(&identity)?;
    let (engine, found) = Engine::open(home, records, policy, Arc::default())?;
    fresh |= engine.durable().0 == EpochId(0) || identity.adopting;
    Ok(Admitted {
        engine,
        found,
        identity,
        version: hello.version.min(PROTOCOL_VERSION),
        fresh,
        privileged: policy.privileged,
        lock,
    })
}

fn open_home(root: &Path, hello: &Hello) -> Result<Home, ReplicaError> {
    match rustix::fs::mkdir(root, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error).doing(|| format!("cannot make {}", root.display())),
    }
    if let Some(home) = Home::open(root)? {
        home.check_format()?;
        if home.identity()?.is_some() || hello.adopt || is_empty(root)? {
            return Home::create(root);
        }
    } else if hello.adopt || is_empty(root)? {
        return Home::create(root);
    }
    let message = format!(
        "{} has files in it and is no replica yet; with --adopt they are compared, and what \
         differs from the source is replaced or removed",
        root.display()
    );
    Err(ReplicaError::refused(Refusal::NotEmpty, message))
}

/// Whether there is nothing in the target besides the replica's own directory.
fn is_empty(root: &Path) -> Result<bool, ReplicaError> {
    let open = open_root(root)?;
    let found = names(&open).doing(|| format!("cannot list {}", root.display()))?;
    Ok(found
        .iter()
        .all(|name| name == RESERVED_NAME.as_bytes() || name == b"lost+found"))
}

/// Whose replica it is from now on, and whether the primary must fetch its records.
fn identify(root: &Path, home: &Home, hello: &Hello) -> Result<(Identity, bool), ReplicaError> {
    let Some(mut identity) = home.identity()? else {
        let identity = Identity {
            replica: Uuid::random().doing(|| "cannot make an identity")?,
            primary: hello.primary,
            incarnation: hello.incarnation,
            session: hello.session,
            adopting: !is_empty(root)?,
            fake_super: false,
        };
        return Ok((identity, true));
    };
    let shown = root.display();
    let foreign = identity.primary != hello.primary;
    let other = hello.replica.is_some_and(|known| known != identity.replica);
    if (foreign || other) && !hello.adopt {
        let message = match foreign {
            true => format!(
                "{shown} is the replica of another primary ({}); with --adopt it becomes yours, \
                 and that one is locked out",
                identity.primary
            ),
            false => format!("{shown} is not the replica that this directory was mirrored to"),
        };
        return Err(ReplicaError::refused(Refusal::Foreign, message));
    }
    let theirs = (identity.incarnation, identity.session);
    if !foreign && theirs > (hello.incarnation, hello.session) {
        let message = format!(
            "a newer session (incarnation {}, session {}) of this primary uses {shown}",
            identity.incarnation, identity.session
        );
        return Err(ReplicaError::refused(Refusal::Fenced, message));
    }
    identity.primary = hello.primary;
    identity.incarnation = hello.incarnation;
    identity.session = hello.session;
    Ok((identity, foreign || other || hello.replica.is_none()))
}

fn open_records(
    home: &Home,
    identity: &mut Identity,
    hello: &Hello,
) -> Result<Records, ReplicaError> {
    let path = home.records_path();
    if identity.adopting || home.identity()?.is_none() {
        // Durably, before there are records that are not complete.
        home.set_identity(identity)?;
        return Ok(Records::create(&path)?);
    }
    match Records::open(&path) {
        Err(
            error @ (records::Error::Damaged { .. }
            | records::Error::Missing { .. }
            | records::Error::Version { .. }),
        ) => {
            if !hello.adopt {
                return Err(error.into());
            }
            tracing::warn!(%error, "the records are made again by a scan");
            identity.adopting = true;
            home.set_identity(identity)?;
            Ok(Records::create(&path)?)
        }
        opened => Ok(opened?),
    }
}

/// What [`recover`] found, and did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// The epoch whose state the tree has.
    pub epoch: EpochId,
    /// How many epochs were durable and not applied.
    pub applied: u64,
    /// Whether the tree existed at one instant (not within a first sync in parts).
    pub consistent: bool,
    /// Objects that are not what the records say; the primary will compare them.
    pub suspects: u64,
}

/// Applies everything that is durable in the replica `root`, without a primary. An apply that
/// was interrupted is finished.
///
/// # Errors
/// When it is no replica, is being served, or cannot be read or written.
pub fn recover(root: &Path) -> Result<Recovered, ReplicaError> {
    let missing = || {
        let message = format!("{} is not a replica", root.display());
        ReplicaError::refused(Refusal::Unusable, message)
    };
    let home = Home::open(root)?.ok_or_else(missing)?;
    home.check_format()?;
    let _lock = lock::acquire(&home, &Stop::default(), || false)?;
    let identity = home.identity()?.ok_or_else(missing)?;
    let records = Records::open(&home.records_path())?;
    let policy = Policy::of_process(identity.fake_super);
    let (engine, _) = Engine::open(home, records, policy, Arc::new(AtomicBool::new(false)))?;
    let applied = engine.waiting();
    let result = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(APPLY_STACK_BYTES)
            .spawn_scoped(scope, || engine.run_once())
            .doing(|| "cannot start a thread")?;
        thread.join().unwrap_or(Err(ReplicaError::Stopped))
    });
    let suspects = result?.len() as u64;
    let state = engine.applied();
    Ok(Recovered {
        epoch: state.epoch,
        applied,
        consistent: state.consistent,
        suspects,
    })
}
