//! What to do after the replica's welcome.
//!
//! The replica says which epoch it holds durably and by which digest. It is in step with the
//! index; or ahead by epochs whose manifests the primary kept (an acknowledgement was lost); or
//! anything else, and then its records replace the index and the tree is compared by content.

use crate::model::{EpochId, SessionId, Uuid};
use crate::wire::Welcome;

/// What the primary knows at the start of a session.
#[derive(Clone, Debug)]
pub struct Local {
    /// The replica it has worked with.
    pub replica: Option<Uuid>,
    /// The session before this one in the life of this process, and how many entries it staged
    /// before a seal; those can be kept.
    pub stage: Option<(SessionId, u64)>,
    /// The index's epoch and digest.
    pub index: (EpochId, [u8; 32]),
    /// The manifests that are newer than the index, oldest first.
    pub manifests: Vec<SealedManifest>,
    /// Whether the user said that another replica may be taken.
    pub adopt: bool,
}

/// A manifest on the primary's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SealedManifest {
    /// Its epoch.
    pub epoch: EpochId,
    /// The epoch that it changes.
    pub parent: EpochId,
    /// Its digest.
    pub digest: [u8; 32],
}

/// How the session begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The index is what the replica holds, after these manifests were applied to it (mostly
    /// none). So many entries of the stage are kept.
    InStep {
        /// To be applied to the index, in order.
        manifests: Vec<EpochId>,
        /// How many entries of the stage can be kept.
        keep: u64,
    },
    /// The index is not what the replica holds: fetch its records.
    FetchRecords,
}

/// Why the mirror cannot go on until somebody decides.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Halt {
    /// Another replica answers.
    #[error(
        "the target holds another replica ({found}) than the one this directory was mirrored to \
         ({known})"
    )]
    OtherReplica {
        /// Who answers.
        found: Uuid,
        /// Who was expected.
        known: Uuid,
    },
}

/// Decides.
///
/// # Errors
/// When another replica answers than before, and that was not asked for.
pub fn decide(welcome: &Welcome, local: &Local) -> Result<Decision, Halt> {
    if let Some(known) = local.replica
        && known != welcome.replica
    {
        if !local.adopt {
            return Err(Halt::OtherReplica {
                found: welcome.replica,
                known,
            });
        }
        return Ok(Decision::FetchRecords);
    }
    if welcome.fresh || local.replica.is_none() {
        return Ok(Decision::FetchRecords);
    }
    let Some(manifests) = path_to(welcome, local) else {
        return Ok(Decision::FetchRecords);
    };
    let keep = match local.stage {
        Some((session, entries)) if session == welcome.staged_by && manifests.is_empty() => {
            entries.min(welcome.staged)
        }
        _ => 0,
    };
    Ok(Decision::InStep { manifests, keep })
}

/// The manifests that lead from the index to what the replica holds.
fn path_to(welcome: &Welcome, local: &Local) -> Option<Vec<EpochId>> {
    let (mut epoch, mut digest) = local.index;
    let mut path = Vec::new();
    while epoch < welcome.durable {
        let next = local
            .manifests
            .iter()
            .find(|manifest| manifest.parent == epoch && manifest.epoch <= welcome.durable)?;
        (epoch, digest) = (next.epoch, next.digest);
        path.push(epoch);
    }
    (epoch == welcome.durable && digest == welcome.digest).then_some(path)
}
