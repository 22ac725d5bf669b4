use super::*;
use crate::model::{Incarnation, SessionId, Timestamp, Uuid};
use crate::wire::Welcome;

fn commit(epoch: u64) -> Commit {
    Commit {
        epoch: EpochId(epoch),
        parent: EpochId(epoch - 1),
        incarnation: Incarnation(1),
        sealed_at: Timestamp::default(),
        consistent: true,
        entries: 0,
        digest: [0; 32],
    }
}

fn welcome(durable: u64, digest: u8) -> Welcome {
    Welcome {
        version: 1,
        program: String::new(),
        replica: Uuid([7; 16]),
        fresh: false,
        durable: EpochId(durable),
        digest: [digest; 32],
        applied: EpochId(durable),
        staged: 0,
        staged_by: SessionId(0),
        consistent: true,
        privileged: true,
    }
}

fn local(index: u64, digest: u8, manifests: &[(u64, u64, u8)]) -> Local {
    Local {
        replica: Some(Uuid([7; 16])),
        stage: None,
        index: (EpochId(index), [digest; 32]),
        manifests: manifests
            .iter()
            .map(|&(epoch, parent, digest)| SealedManifest {
                epoch: EpochId(epoch),
                parent: EpochId(parent),
                digest: [digest; 32],
            })
            .collect(),
        adopt: false,
    }
}

fn in_step(manifests: &[u64], keep: u64) -> Decision {
    Decision::InStep {
        manifests: manifests.iter().map(|&epoch| EpochId(epoch)).collect(),
        keep,
    }
}

#[test]
fn an_acknowledgement_for_what_was_not_sent_is_refused() {
    let mut sender = Sender::new(EpochId(4), EpochId(4), 0);
    assert!(sender.receive(ToPrimary::Staged { entries: 1 }).is_err());
    assert!(sender.receive(ToPrimary::Durable(EpochId(5))).is_err());
    sender.stage(10);
    sender.sealed(EpochId(6));
    assert!(sender.receive(ToPrimary::Received(EpochId(6))).is_err());
    sender.committing(&commit(6));
    assert!(sender.receive(ToPrimary::Durable(EpochId(5))).is_err());
    let applied = ToPrimary::Applied {
        epoch: EpochId(6),
        root_hash: RootHash::default(),
    };
    assert!(sender.receive(applied.clone()).is_err());
    assert_eq!(
        sender.receive(ToPrimary::Durable(EpochId(6))),
        Ok(Event::Durable(EpochId(6)))
    );
    assert!(sender.receive(applied).is_ok());
    assert_eq!(sender.staged(), 0);
}

#[test]
fn the_window_closes_and_opens() {
    let mut sender = Sender::new(EpochId(0), EpochId(0), 0);
    let mut sent = 0;
    while sender.may_stage() {
        sender.stage(1 << 20);
        sent += 1;
    }
    assert!(sent <= 33);
    sender
        .receive(ToPrimary::Staged { entries: sent })
        .expect("was sent");
    assert!(sender.may_stage());
    assert_eq!(sender.confirmed(), sent);
}

#[test]
fn a_lost_acknowledgement_is_mended_by_the_manifest() {
    let known = local(4, 4, &[(6, 4, 6)]);
    assert_eq!(decide(&welcome(4, 4), &known), Ok(in_step(&[], 0)));
    assert_eq!(decide(&welcome(6, 6), &known), Ok(in_step(&[6], 0)));
    // the digest is another: a fork
    assert_eq!(decide(&welcome(6, 9), &known), Ok(Decision::FetchRecords));
    assert_eq!(decide(&welcome(4, 9), &known), Ok(Decision::FetchRecords));
    // behind, or ahead of what anybody here knows
    assert_eq!(decide(&welcome(3, 3), &known), Ok(Decision::FetchRecords));
    assert_eq!(decide(&welcome(7, 7), &known), Ok(Decision::FetchRecords));
}

#[test]
fn another_replica_is_not_overwritten() {
    let mut known = local(4, 4, &[]);
    let mut other = welcome(4, 4);
    other.replica = Uuid([8; 16]);
    assert!(matches!(
        decide(&other, &known),
        Err(Halt::OtherReplica { .. })
    ));
    known.adopt = true;
    assert_eq!(decide(&other, &known), Ok(Decision::FetchRecords));
    known.replica = None;
    assert_eq!(decide(&other, &known), Ok(Decision::FetchRecords));
}

#[test]
fn a_stage_is_kept_only_by_the_session_that_made_it() {
    let mut known = local(4, 4, &[(6, 4, 6)]);
    known.stage = Some((SessionId(3), 20));
    let mut answer = welcome(4, 4);
    answer.staged = 12;
    answer.staged_by = SessionId(3);
    assert_eq!(decide(&answer, &known), Ok(in_step(&[], 12)));
    answer.staged = 50;
    assert_eq!(decide(&answer, &known), Ok(in_step(&[], 20)));
    answer.staged_by = SessionId(2);
    assert_eq!(decide(&answer, &known), Ok(in_step(&[], 0)));
}
