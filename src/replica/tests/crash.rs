//! The apply of an epoch, cut off at every step; what is then done again must end in the same
//! tree.

use super::super::tree::{Fate, Hook};
use super::model::{commit, compare, make, open, place, try_open};
use super::world::{Dice, World};
use crate::model::FileId;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Ends the process before step number `at`; of the steps since the last sync, each is lost with
/// a chance of one in `lose`.
#[derive(Debug)]
struct Crash {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: usize,
    lose: usize,
    dice: u64,
    lost: bool,
}

impl Crash {
    fn at(left: usize, lose: usize, dice: u64) -> Arc<Crash> {
        let state = State {
            left,
            lose,
            dice,
            lost: false,
        };
        Arc::new(Crash {
            state: Mutex::new(state),
        })
    }
}

impl Hook for Crash {
    fn before(&self, what: &'static str) -> Fate {
        let mut state = self.state.lock();
        // A sync cannot succeed when something was lost.
        if state.left == 0 || (what == "sync" && state.lost) {
            return Fate::Crash;
        }
        state.left -= 1;
        let mut dice = Dice(state.dice);
        let lose = state.lose > 0 && what != "sync" && dice.chance(state.lose);
        state.dice = dice.0;
        if lose {
            state.lost = true;
            return Fate::Lost;
        }
        Fate::Made
    }
}

fn copy_of(root: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(root)
        .arg(to)
        .status()
        .expect("cp");
    assert!(status.success());
}

/// A replica with one applied state and one durable epoch or more.
fn prepare(root: &Path, seed: u64, together: usize) -> World {
    let dice = &mut Dice(seed);
    make(root);
    let mut world = World::new();
    let mut before = world.clone();
    before
        .things
        .get_mut(&FileId::ROOT)
        .expect("root")
        .object
        .attributes
        .uid = 7;
    for _ in 0..12 {
        world.change(dice);
    }
    let (engine, mut stage) = open(root, None);
    commit(&engine, &mut stage, &world.epoch(&before, dice));
    engine.run_once().expect("applied");
    // Its records are open only once.
    drop((engine, stage));
    let (engine, mut stage) = open(root, None);
    for _ in 0..together {
        let before = world.clone();
        while world == before {
            for _ in 0..dice.roll(8) + 1 {
                world.change(dice);
            }
        }
        commit(&engine, &mut stage, &world.epoch(&before, dice));
    }
    world
}

/// Applies with a crash; whether it was through before.
fn crash(root: &Path, hook: Arc<Crash>, all: bool) -> bool {
    let Ok((engine, _)) = try_open(root, Some(hook)) else {
        return false;
    };
    // Together: as when they wait for the thread.
    if all {
        engine.forget_begun();
    }
    engine.run_once().is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn an_apply_cut_off_anywhere_is_finished(seed in any::<u64>(), together in 1usize..3) {
        let place = place();
        let before = place.path().join("before");
        std::fs::create_dir(&before).expect("made");
        let world = prepare(&before, seed, together);
        for step in 0.. {
            let root = place.path().join("now");
            copy_of(&before, &root);
            let through = crash(&root, Crash::at(step, 0, 0), together > 1);
            // A second crash, somewhere in the replay.
            crash(&root, Crash::at(seed as usize % (step + 1), 0, 0), false);
            let (engine, _) = open(&root, None);
            engine.run_once().expect("recovered");
            compare(&root, &world);
            std::fs::remove_dir_all(&root).expect("removed");
            if through {
                break;
            }
        }
    }
}
