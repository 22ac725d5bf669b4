use super::tree::{Names, Tree};
use super::walk::{self, Task};
use super::{Phase, Progress, Start, Walker};
use crate::backing::Inspected;
use crate::model::{FileId, Name};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

type Directories = BTreeMap<FileId, BTreeMap<Name, FileId>>;

// Two trees in memory. A directory is what has an entry in `real`.
#[derive(Default)]
struct State {
    real: Directories,
    known: Directories,
    fails: BTreeMap<FileId, u32>,
    unwalked: Vec<FileId>,
    discovered: u64,
    compared: Vec<FileId>,
    inspections: usize,
    room: Option<usize>,
    next_id: u64,
}

#[derive(Default)]
struct Fake {
    state: Mutex<State>,
    bell: Arc<Notify>,
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl Fake {
    fn new() -> Arc<Fake> {
        let fake = Fake::default();
        fake.state.lock().real.insert(FileId::ROOT, BTreeMap::new());
        fake.state.lock().next_id = 2;
        Arc::new(fake)
    }

    // Puts something there behind the back of the known tree.
    fn put(&self, parent: FileId, text: &str, is_directory: bool) -> FileId {
        let mut state = self.state.lock();
        let id = FileId(state.next_id);
        state.next_id += 1;
        state.real.get_mut(&parent).unwrap().insert(name(text), id);
        if is_directory {
            state.real.insert(id, BTreeMap::new());
        }
        id
    }

    // What is reachable from the root.
    fn view(&self, known: bool) -> Directories {
        let state = self.state.lock();
        let tree = if known { &state.known } else { &state.real };
        let (mut view, mut stack) = (Directories::new(), vec![FileId::ROOT]);
        while let Some(directory) = stack.pop() {
            let children = tree.get(&directory).cloned().unwrap_or_default();
            stack.extend(children.values().filter(|id| state.real.contains_key(id)));
            view.insert(directory, children);
        }
        view
    }

    fn assert_equal(&self) {
        assert_eq!(self.view(true), self.view(false));
    }
}

impl Tree for Fake {
    fn list(&self, directory: FileId) -> io::Result<Names> {
        let mut state = self.state.lock();
        if let Some(left) = state.fails.get_mut(&directory).filter(|left| **left > 0) {
            *left -= 1;
            return Err(errno(libc::EACCES));
        }
        let children = state
            .real
            .get(&directory)
            .ok_or_else(|| errno(libc::ESTALE))?;
        let mut names: Vec<Name> = children.keys().cloned().collect();
        Ok(Box::new(move |max| {
            Ok(names.drain(..max.min(3).min(names.len())).collect())
        }))
    }
    fn known_children(
        &self,
        directory: FileId,
        after: Option<&Name>,
        max: usize,
    ) -> io::Result<Vec<(Name, FileId)>> {
        let state = self.state.lock();
        let children = state.known.get(&directory).cloned().unwrap_or_default();
        let rest = children
            .into_iter()
            .filter(|(name, _)| after.is_none_or(|after| name > after));
        Ok(rest.take(max.min(3)).collect())
    }
    fn inspect(&self, parent: FileId, name: &Name) -> io::Result<Option<Inspected>> {
        let mut state = self.state.lock();
        state.inspections += 1;
        if let Some(room) = &mut state.room {
            *room = room.saturating_sub(1);
        }
        let real = state
            .real
            .get(&parent)
            .and_then(|children| children.get(name))
            .copied();
        let known = state.known.entry(parent).or_default();
        let Some(id) = real else {
            known.remove(name);
            return Ok(None);
        };
        let was_new = known.insert(name.clone(), id) != Some(id);
        let is_directory = state.real.contains_key(&id);
        Ok(Some(Inspected {
            id,
            is_directory,
            was_new,
            suspect: false,
        }))
    }
    fn inspect_root(&self) -> io::Result<Inspected> {
        Ok(Inspected {
            id: FileId::ROOT,
            is_directory: true,
            was_new: false,
            suspect: false,
        })
    }
    fn inspect_object(&self, id: FileId) -> io::Result<bool> {
        self.state.lock().compared.push(id);
        Ok(true)
    }
    fn take_unwalked(&self) -> Vec<FileId> {
        std::mem::take(&mut self.state.lock().unwalked)
    }
    fn discovered(&self) -> u64 {
        self.state.lock().discovered
    }
    fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.bell)
    }
    fn has_room(&self) -> bool {
        self.state.lock().room != Some(0)
    }
    fn walk_begins(&self) {}
    fn settled(&self, _walked: bool) {}
    fn describe(&self, directory: FileId) -> String {
        directory.to_string()
    }
}

fn wait_for(walker: &Walker, what: impl Fn(&Progress) -> bool) -> Progress {
    let mut watch = walker.watch();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let found = tokio::time::timeout(Duration::from_secs(30), watch.wait_for(|p| what(p)));
        found.await.expect("in time").expect("a walker").clone()
    })
}

fn complete(walker: &Walker) {
    wait_for(walker, |progress| progress.phase == Phase::Complete);
    assert!(walker.is_complete());
}

fn everything() -> Start {
    Start {
        walk: true,
        ..Start::default()
    }
}

#[test]
fn a_walk_makes_the_known_tree_the_real_one() {
    let fake = Fake::new();
    let mut parent = FileId::ROOT;
    for depth in 0..40 {
        for file in 0..7 {
            fake.put(parent, &format!("f{file}"), false);
        }
        parent = fake.put(parent, &format!("d{depth}"), true);
    }
    fake.state
        .lock()
        .known
        .entry(FileId::ROOT)
        .or_default()
        .insert(name("gone"), FileId(900));
    let walker = Walker::start(fake.clone(), everything()).unwrap();
    complete(&walker);
    fake.assert_equal();
    let progress = walker.progress();
    assert_eq!((progress.directories, progress.objects), (41, 40 * 8));
    assert!(progress.failures.is_empty());
    walker.stop();
}

#[test]
fn a_walk_is_not_complete_while_a_directory_cannot_be_read() {
    let fake = Fake::new();
    let locked = fake.put(FileId::ROOT, "locked", true);
    fake.put(locked, "in", false);
    fake.put(FileId::ROOT, "other", false);
    fake.state.lock().fails.insert(locked, 1);
    let walker = Walker::start(fake.clone(), everything()).unwrap();
    let progress = wait_for(&walker, |progress| progress.phase == Phase::WaitingToRetry);
    assert!(!walker.is_complete());
    assert_eq!((progress.failed, progress.failures.len()), (1, 1));
    assert!(
        progress.failures[0].error.contains("denied"),
        "{progress:?}"
    );
    complete(&walker);
    fake.assert_equal();
}

#[test]
fn a_walk_waits_for_room_and_can_be_stopped_there() {
    let fake = Fake::new();
    for file in 0..20 {
        fake.put(FileId::ROOT, &format!("f{file:02}"), false);
    }
    fake.state.lock().room = Some(5);
    let walker = Walker::start(fake.clone(), everything()).unwrap();
    wait_for(&walker, |progress| progress.phase == Phase::WaitingForRoom);
    assert_eq!(fake.state.lock().inspections, 5);
    walker.stop();
    assert_eq!(fake.state.lock().inspections, 5);

    let walker = Walker::start(fake.clone(), everything()).unwrap();
    wait_for(&walker, |progress| progress.phase == Phase::WaitingForRoom);
    fake.state.lock().room = None;
    walker.room_made();
    complete(&walker);
    fake.assert_equal();
}

#[test]
fn what_an_operation_discovers_ends_a_mark_until_it_is_walked() {
    let fake = Fake::new();
    let walker = Walker::start(fake.clone(), everything()).unwrap();
    complete(&walker);
    let mark = walker.mark().unwrap();
    assert!(walker.holds(mark));
    let directory = fake.put(FileId::ROOT, "in", true);
    fake.put(directory, "file", false);
    {
        let mut state = fake.state.lock();
        state
            .known
            .entry(FileId::ROOT)
            .or_default()
            .insert(name("in"), directory);
        state.unwalked.push(directory);
        state.discovered += 1;
    }
    assert!(!walker.holds(mark) && walker.mark().is_none());
    fake.bell.notify_one();
    wait_for(&walker, |progress| progress.directories == 2);
    complete(&walker);
    assert!(!walker.holds(mark));
    fake.assert_equal();
    walker.suspect([FileId(77)]);
    assert!(walker.mark().is_none_or(|later| later != mark));
    wait_for(&walker, |progress| progress.found > 1);
    assert_eq!(fake.state.lock().compared, [FileId(77)]);
}

#[test]
fn a_walk_by_content_compares_every_file() {
    let fake = Fake::new();
    let directory = fake.put(FileId::ROOT, "d", true);
    let files: BTreeSet<FileId> = (0..9)
        .map(|file| fake.put(directory, &format!("f{file}"), false))
        .collect();
    let start = Start {
        by_content: true,
        ..everything()
    };
    let walker = Walker::start(fake.clone(), start).unwrap();
    complete(&walker);
    assert_eq!(
        fake.state
            .lock()
            .compared
            .iter()
            .copied()
            .collect::<BTreeSet<_>>(),
        files
    );
}

#[test]
fn names_past_the_bound_are_inspected_twice_and_none_is_missed() {
    let fake = Fake::new();
    for file in 0..10 {
        fake.put(FileId::ROOT, &format!("f{file}"), false);
    }
    fake.state
        .lock()
        .known
        .entry(FileId::ROOT)
        .or_default()
        .insert(name("g"), FileId(900));
    let task = Task {
        directory: FileId::ROOT,
        by_content: false,
    };
    walk::directory(&*fake, task, 4, &mut || Ok(())).unwrap();
    assert_eq!(fake.state.lock().inspections, 10 + 6 + 1);
    fake.assert_equal();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    // Users work while the walk goes by: what they do, the known tree knows at once, but for the
    // content of a directory that no walk has seen, which they can only hand over.
    #[test]
    fn users_and_the_walk_agree(steps in prop::collection::vec((0u8..3, any::<u16>(), any::<u16>()), 1..60)) {
        let fake = Fake::new();
        let mut directories = vec![FileId::ROOT];
        for index in 0..12usize {
            let parent = directories[index / 2];
            directories.push(fake.put(parent, &format!("d{index}"), true));
            fake.put(parent, &format!("f{index}"), false);
        }
        let walker = Walker::start(fake.clone(), everything()).unwrap();
        for (what, one, other) in steps {
            let pick = |number: u16| directories[usize::from(number) % directories.len()];
            let (from, to) = (pick(one), pick(other));
            let mut state = fake.state.lock();
            match what {
                0 => {
                    let id = FileId(state.next_id);
                    state.next_id += 1;
                    let text = name(&format!("n{}", other % 5));
                    state.real.get_mut(&to).unwrap().insert(text.clone(), id);
                    state.known.entry(to).or_default().insert(text, id);
                }
                1 => {
                    let first = state.real[&from].iter().find(|(_, id)| !state.real.contains_key(id));
                    let Some((text, _)) = first.map(|(text, id)| (text.clone(), *id)) else { continue };
                    state.real.get_mut(&from).unwrap().remove(&text);
                    state.known.entry(from).or_default().remove(&text);
                }
                _ => {
                    // A directory moves below the root.
                    let Some((text, id)) = state.real[&from]
                        .iter()
                        .find(|(_, id)| state.real.contains_key(id))
                        .map(|(text, id)| (text.clone(), *id))
                    else { continue };
                    let was_known = state.known.get(&from).is_some_and(|c| c.contains_key(&text));
                    let new = name(&format!("m{}", id.0));
                    state.real.get_mut(&from).unwrap().remove(&text);
                    state.real.get_mut(&FileId::ROOT).unwrap().insert(new.clone(), id);
                    state.known.entry(from).or_default().remove(&text);
                    state.known.entry(FileId::ROOT).or_default().insert(new, id);
                    if !was_known {
                        state.unwalked.push(id);
                        state.discovered += 1;
                        fake.bell.notify_one();
                    }
                }
            }
        }
        wait_for(&walker, |_| walker.is_complete());
        fake.assert_equal();
    }
}
