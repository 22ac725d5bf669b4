//! Things that leave the mirrored part of the tree, change there unseen, and come back, as
//! backing does it for excluded paths.

use super::name;
use super::tree::HIDDEN;
use super::world::World;
use crate::journal::Limits;
use crate::model::{Extent, FileId, Fixed, Name, Stamp};
use std::os::unix::fs::FileExt;
use std::time::Duration;

impl World {
    fn hidden_names(&self) -> Vec<((FileId, Name), FileId)> {
        let names = self.tree.names.lock().clone();
        let mirrored = self.tree.mirrored_names();
        names
            .into_iter()
            .filter(|(name, _)| !mirrored.contains_key(name))
            .collect()
    }

    fn size(&self, id: FileId) -> u64 {
        self.tree.with(id, |object, _| object.size)
    }

    pub fn move_out(&mut self, at: usize) {
        let Some(((directory, old_name), id)) = self.a_name(at) else {
            return;
        };
        let time = self.tick();
        let operation = self.journal.begin();
        operation
            .before_attributes(directory, &self.tree)
            .expect("ok");
        operation
            .before_unlink(id, self.links(id) == 1, &self.tree)
            .expect("ok");
        {
            let mut names = self.tree.names.lock();
            names.remove(&(directory, old_name.clone()));
            names.insert((HIDDEN, name(&format!("h{time}"))), id);
        }
        self.tree.touch(directory, time);
        operation.unbind(directory, &old_name);
    }

    /// What is below a hidden directory, or only there, is changed; nothing is recorded.
    pub fn change_hidden(&mut self, at: usize, kind: u8, size: u64) {
        let hidden = self.hidden_names();
        let Some((place, id)) = hidden.get(at % hidden.len().max(1)).cloned() else {
            return;
        };
        let time = self.unseen_tick();
        if kind == 0 && self.is_directory(id) {
            let child = self.journal.mint();
            self.tree.create(child, Fixed::File);
            self.tree
                .names
                .lock()
                .insert((id, name(&format!("n{}", time % 5))), child);
        } else if kind == 1 && self.is_empty(id) && place.0 != HIDDEN {
            let operation = self.journal.begin();
            operation
                .before_attributes(place.0, &self.tree)
                .expect("ok");
            operation
                .before_unlink(id, self.links(id) == 1, &self.tree)
                .expect("ok");
            self.tree.names.lock().remove(&place);
            self.tree.touch(place.0, time);
            drop(operation);
            if self.links(id) == 0 {
                self.tree.objects.lock().remove(&id);
            }
        } else if !self.is_directory(id) && !self.tree.is_mirrored(id) {
            let old = self.size(id);
            let operation = self.journal.begin();
            let extent = Extent::between(0, old.max(size).max(8));
            operation.before_data(id, extent, &self.tree).expect("ok");
            self.tree.with(id, |_, file| {
                let file = file.expect("a file");
                file.write_all_at(&time.to_le_bytes(), 0).expect("written");
                file.set_len(size).expect("cut");
            });
            self.tree.touch(id, time);
        }
    }

    pub fn move_in(&mut self, at: usize, directory: FileId, new_name: &Name) {
        let hidden = self.hidden_names();
        let hidden: Vec<_> = hidden
            .into_iter()
            .filter(|((p, _), _)| *p == HIDDEN)
            .collect();
        let Some((place, id)) = hidden.get(at % hidden.len().max(1)).cloned() else {
            return;
        };
        if self.holder(directory, new_name).is_some() {
            return;
        }
        let time = self.tick();
        let operation = self.journal.begin();
        operation
            .before_attributes(directory, &self.tree)
            .expect("ok");
        operation.before_attributes(id, &self.tree).expect("ok");
        {
            let mut names = self.tree.names.lock();
            names.remove(&place);
            names.insert((directory, new_name.clone()), id);
        }
        self.tree.touch(directory, time);
        if !self.journal.is_reachable(id).expect("index") {
            operation.discovered(id, &Stamp::default(), self.size(id));
        }
        operation.bind(directory, new_name, id);
        drop(operation);
        if self.is_directory(id) {
            self.walk(id);
        }
    }

    /// Makes the known tree below a directory the real one.
    fn walk(&mut self, directory: FileId) {
        let known = self
            .journal
            .known_children(directory, None, 100)
            .expect("index");
        for (name, _) in known {
            if self.holder(directory, &name).is_none() {
                let operation = self.journal.begin();
                operation
                    .before_attributes(directory, &self.tree)
                    .expect("ok");
                operation.unbind(directory, &name);
            }
        }
        let names = self.tree.names.lock().clone();
        for ((_, name), id) in names.into_iter().filter(|((p, _), _)| *p == directory) {
            let operation = self.journal.begin();
            let size = self.size(id);
            if self.journal.is_reachable(id).expect("index") {
                operation.compare(id, size);
            } else {
                operation.discovered(id, &Stamp::default(), size);
            }
            if self.journal.known_child(directory, &name).expect("index") != Some(id) {
                operation
                    .before_attributes(directory, &self.tree)
                    .expect("ok");
                operation.bind(directory, &name, id);
            }
            drop(operation);
            if self.is_directory(id) {
                self.walk(id);
            }
        }
    }
}

fn small_world() -> World {
    let world = World::new(Limits {
        hot_settle: Duration::ZERO,
        ..Limits::default()
    });
    world.check_known();
    world
}

/// A directory `n0` with a file and a directory that has a file, which the replica has.
fn replicated() -> World {
    let mut world = small_world();
    world.create(FileId::ROOT, &name("n0"), true);
    let top = world.holder(FileId::ROOT, &name("n0")).expect("made");
    world.create(top, &name("n1"), false);
    world.create(top, &name("n2"), true);
    let below = world.holder(top, &name("n2")).expect("made");
    world.create(below, &name("n3"), false);
    let file = world.holder(below, &name("n3")).expect("made");
    world.write(file, 0, 100);
    world.seal();
    world.commit();
    world.check_known();
    world
}

fn complete(mut world: World) {
    world.check_known();
    world.reconnect();
    world.check_known();
    world.finish();
    world.check_known();
}

#[test]
fn a_directory_comes_back_while_it_is_being_taken_from_the_replica() {
    for (abandoned, removed) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = replicated();
        world.move_out(0);
        world.seal();
        if removed {
            // n0/n2/n3 is removed where nobody looks.
            world.change_hidden(2, 1, 0);
        }
        world.move_in(0, FileId::ROOT, &name("n4"));
        world.check_known();
        if abandoned {
            world.abandon(false);
            world.check_known();
        }
        complete(world);
    }
}

#[test]
fn a_directory_comes_back_while_it_is_not_known_whether_it_was_taken() {
    for (arrived, removed) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = replicated();
        world.move_out(0);
        world.seal();
        world.lose_commit(arrived);
        if removed {
            world.change_hidden(2, 1, 0);
        }
        world.move_in(0, FileId::ROOT, &name("n4"));
        complete(world);
    }
}

#[test]
fn what_may_have_arrived_is_taken_back_when_it_is_removed() {
    for arrived in [false, true] {
        let mut world = small_world();
        world.create(FileId::ROOT, &name("n0"), true);
        let top = world.holder(FileId::ROOT, &name("n0")).expect("made");
        world.create(top, &name("n1"), false);
        let file = world.holder(top, &name("n1")).expect("made");
        world.seal();
        world.lose_commit(arrived);
        world.unlink(top, &name("n1"), file);
        world.create(top, &name("n2"), false);
        let other = world.holder(top, &name("n2")).expect("made");
        world.unlink(top, &name("n2"), other);
        assert_eq!(
            world.journal.overlay_child(top, &name("n2")),
            None,
            "it leaves nothing"
        );
        complete(world);
    }
}
