//! Random operations, seals, stages, losses and commits, with a planner that reads between all of
//! them. Whatever happens: the known tree is the real tree, a committed epoch is the tree of its
//! seal to the byte, nobody is told too early, and in the end the replica has everything.

use super::name;
use super::world::World;
use crate::journal::Limits;
use crate::limits::BLOCK_BYTES;
use crate::model::Name;
use proptest::prelude::*;
use std::time::Duration;

const FILE_BYTES: u64 = 4 * BLOCK_BYTES;

#[derive(Clone, Debug)]
enum Step {
    Create {
        directory: usize,
        name: u8,
        is_directory: bool,
    },
    Link {
        object: usize,
        directory: usize,
        name: u8,
    },
    Unlink {
        name: usize,
    },
    Rename {
        from: usize,
        directory: usize,
        name: u8,
        unbind_first: bool,
    },
    Write {
        object: usize,
        offset: u64,
        length: u64,
    },
    WriteUnlinked {
        object: usize,
        offset: u64,
        length: u64,
    },
    Truncate {
        object: usize,
        size: u64,
    },
    Attributes {
        object: usize,
        extended: bool,
    },
    Outside {
        object: usize,
        size: u64,
    },
    Discover {
        directory: usize,
        name: u8,
        size: u64,
    },
    MoveOut {
        name: usize,
    },
    ChangeHidden {
        name: usize,
        kind: u8,
        size: u64,
    },
    MoveIn {
        hidden: usize,
        directory: usize,
        name: u8,
    },
    Seal,
    Plan {
        steps: usize,
    },
    Commit,
    LoseCommit {
        arrived: bool,
    },
    Reconnect,
    Abandon {
        keep_stage: bool,
    },
    Stage {
        bytes: u64,
        confirmed: usize,
    },
    LoseStage {
        percent: u64,
    },
    Mark,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (i, n) = (0usize..64, 0u8..5);
    let range = (0..FILE_BYTES, prop_oneof![1u64..200, 1..2 * BLOCK_BYTES]);
    let size = prop_oneof![
        Just(0),
        1..FILE_BYTES,
        (0..4u64).prop_map(|b| b * BLOCK_BYTES)
    ];
    let step = prop_oneof![
        4 => (i.clone(), n.clone(), any::<bool>()).prop_map(|(directory, name, d)|
            Step::Create { directory, name, is_directory: d }),
        1 => (i.clone(), i.clone(), n.clone()).prop_map(|(object, directory, name)|
            Step::Link { object, directory, name }),
        2 => i.clone().prop_map(|name| Step::Unlink { name }),
        3 => (i.clone(), i.clone(), n.clone(), any::<bool>()).prop_map(
            |(from, directory, name, unbind_first)|
            Step::Rename { from, directory, name, unbind_first }),
        7 => (i.clone(), range.clone()).prop_map(|(object, (offset, length))|
            Step::Write { object, offset, length }),
        1 => (i.clone(), range).prop_map(|(object, (offset, length))|
            Step::WriteUnlinked { object, offset, length }),
        2 => (i.clone(), size.clone()).prop_map(|(object, size)| Step::Truncate { object, size }),
        2 => (i.clone(), any::<bool>()).prop_map(|(object, extended)|
            Step::Attributes { object, extended }),
        1 => (i.clone(), size.clone()).prop_map(|(object, size)| Step::Outside { object, size }),
        1 => (i.clone(), n.clone(), size.clone()).prop_map(|(directory, name, size)|
            Step::Discover { directory, name, size }),
        1 => i.clone().prop_map(|name| Step::MoveOut { name }),
        1 => (i.clone(), 0u8..3, size).prop_map(|(name, kind, size)|
            Step::ChangeHidden { name, kind, size }),
        2 => (i.clone(), i, n).prop_map(|(hidden, directory, name)|
            Step::MoveIn { hidden, directory, name }),
        3 => Just(Step::Seal),
        6 => (1usize..9).prop_map(|steps| Step::Plan { steps }),
        2 => Just(Step::Commit),
        1 => any::<bool>().prop_map(|arrived| Step::LoseCommit { arrived }),
        2 => Just(Step::Reconnect),
        1 => any::<bool>().prop_map(|keep_stage| Step::Abandon { keep_stage }),
        2 => (1u64..5 * BLOCK_BYTES, 0usize..9).prop_map(|(bytes, confirmed)|
            Step::Stage { bytes, confirmed }),
        1 => (0u64..120).prop_map(|percent| Step::LoseStage { percent }),
        2 => Just(Step::Mark),
    ];
    prop::collection::vec(step, 1..120)
}

/// More of them with `JOURNAL_CASES`.
fn cases() -> u32 {
    std::env::var("JOURNAL_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100)
}

fn name_of(number: u8) -> Name {
    name(&format!("n{number}"))
}

impl World {
    fn run(&mut self, step: Step) {
        match step {
            Step::Create {
                directory,
                name,
                is_directory,
            } => {
                self.create(self.directory(directory), &name_of(name), is_directory);
            }
            Step::Link {
                object,
                directory,
                name,
            } => {
                if let Some(id) = self.file(object) {
                    self.link(id, self.directory(directory), &name_of(name));
                }
            }
            Step::Unlink { name } => {
                if let Some(((directory, name), id)) = self.a_name(name) {
                    self.unlink(directory, &name, id);
                }
            }
            Step::Rename {
                from,
                directory,
                name,
                unbind_first,
            } => {
                self.rename(
                    from,
                    self.directory(directory),
                    &name_of(name),
                    unbind_first,
                );
            }
            Step::Write {
                object,
                offset,
                length,
            } => {
                if let Some(id) = self.file(object) {
                    self.write(id, offset, length);
                }
            }
            Step::WriteUnlinked {
                object,
                offset,
                length,
            } => {
                if let Some(&id) = self.unlinked.get(object % self.unlinked.len().max(1)) {
                    self.write(id, offset, length);
                }
            }
            _ => self.change(step),
        }
    }

    fn change(&mut self, step: Step) {
        match step {
            Step::Truncate { object, size } => {
                if let Some(id) = self.file(object) {
                    self.truncate(id, size);
                }
            }
            Step::Attributes { object, extended } => {
                if let Some(id) = self.pick(object, |_| true) {
                    self.attributes(id, extended);
                }
            }
            Step::Outside { object, size } => {
                if let Some(id) = self.file(object) {
                    self.outside(id, size);
                }
            }
            Step::Discover {
                directory,
                name,
                size,
            } => {
                self.discover(self.directory(directory), &name_of(name), size);
            }
            Step::MoveOut { name } => self.move_out(name),
            Step::ChangeHidden { name, kind, size } => self.change_hidden(name, kind, size),
            Step::MoveIn {
                hidden,
                directory,
                name,
            } => {
                self.move_in(hidden, self.directory(directory), &name_of(name));
            }
            _ => self.ship(step),
        }
    }

    fn ship(&mut self, step: Step) {
        match step {
            Step::Seal => self.seal(),
            Step::Plan { steps } => (0..steps).for_each(|_| {
                self.plan_step();
            }),
            Step::Commit => self.commit(),
            Step::LoseCommit { arrived } => self.lose_commit(arrived),
            Step::Reconnect => self.reconnect(),
            Step::Abandon { keep_stage } => self.abandon(keep_stage),
            Step::Stage { bytes, confirmed } => self.stage(bytes, confirmed),
            Step::LoseStage { percent } => self.lose_stage(percent),
            Step::Mark => self.marks.push((self.journal.mark(), self.changes)),
            _ => unreachable!("done above"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_committed_epoch_is_the_tree_of_its_seal(
        steps in steps(),
        objects_max in prop_oneof![Just(3usize), Just(1000)],
        file_extents_max in prop_oneof![Just(2usize), Just(1000)],
        memory in prop_oneof![Just(0u64), Just(100_000), Just(1 << 30)],
        disk in prop_oneof![Just(0u64), Just(200_000), Just(1 << 30)],
        descriptors in prop_oneof![Just(1usize), Just(100)],
        hot_files_max in 1usize..4,
    ) {
        let mut world = World::new(Limits {
            objects_max,
            file_extents_max,
            saved_memory_bytes_max: memory,
            saved_disk_bytes_max: disk,
            saved_descriptors_max: descriptors,
            base_descriptors_max: 3,
            hot_files_max,
            hot_settle: Duration::ZERO,
            hot_retry: Duration::ZERO,
        });
        for step in steps {
            world.run(step);
            world.check_known();
        }
        world.finish();
    }
}
