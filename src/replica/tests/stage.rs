//! The stage by itself: what it keeps, and what it finds again.

use super::super::stage::Stage;
use super::model::{make, open, place};
use super::session::a_file;
use super::world::bytes;
use crate::model::{Entry, FileId};
use std::path::Path;

const MIB: usize = 1 << 20;

fn fill(stage: &mut Stage, entries: &[(Entry, Vec<u8>)]) {
    for (entry, bytes) in entries {
        stage.add(entry, bytes, |_| Ok(false)).expect("staged");
    }
}

fn number(root: &Path) -> u64 {
    let redo = std::fs::read_dir(root.join(".mirrorfs/redo")).expect("list");
    let names = redo
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers = names.filter_map(|name| name.strip_suffix(".log")?.parse().ok());
    numbers.next().expect("a log")
}

/// Opens what is staged again.
fn again(root: &Path) -> Stage {
    let number = number(root);
    let (_, mut stage) = open(root, None);
    stage.resume(number).expect("resumed");
    stage
}

#[test]
fn a_torn_log_keeps_what_is_whole() {
    let place = place();
    make(place.path());
    let entries = a_file(2, "f", &[3; 300_000]);
    let (engine, mut stage) = open(place.path(), None);
    fill(&mut stage, &entries);
    stage.flush().expect("flushed");
    drop((engine, stage));
    let log = place
        .path()
        .join(format!(".mirrorfs/redo/{}.log", number(place.path())));
    let length = log.metadata().expect("there").len();
    let file = std::fs::File::options()
        .write(true)
        .open(&log)
        .expect("opened");
    file.set_len(length - 5).expect("torn");
    let mut stage = again(place.path());
    assert_eq!(stage.entries(), entries.len() as u64 - 1);
    // And goes on from there.
    fill(&mut stage, &entries[entries.len() - 1..]);
    stage.flush().expect("flushed");
    let digest = stage.digest();
    drop(stage);
    let stage = again(place.path());
    assert_eq!(
        (stage.entries(), stage.digest()),
        (entries.len() as u64, digest)
    );
}

#[test]
fn what_a_forgotten_fragment_overwrote_is_forgotten_too() {
    let place = place();
    make(place.path());
    let (_engine, mut stage) = open(place.path(), None);
    let piece = |at: usize, fill: u8| bytes(FileId(2), at, &vec![fill; MIB], None);
    // Numbers 0 to 4; the last overwrites number 2.
    let entries = [
        piece(0, 1),
        piece(MIB, 2),
        piece(2 * MIB, 3),
        piece(3 * MIB, 4),
        piece(2 * MIB, 5),
    ];
    fill(&mut stage, &entries);
    assert_eq!(stage.truncate(9).expect("nothing to do"), 5);
    assert_eq!(stage.truncate(4).expect("cut"), 2);
    fill(&mut stage, &entries[2..4]);
    assert_eq!(stage.entries(), 4);
    assert_eq!(stage.truncate(3).expect("cut"), 3);
    assert_eq!(stage.truncate(0).expect("cut"), 0);
    let redo = place.path().join(".mirrorfs/redo");
    assert_eq!(std::fs::read_dir(redo).expect("list").count(), 0);
}

#[test]
fn a_staged_file_that_lost_its_bytes_is_noticed() {
    let place = place();
    make(place.path());
    let (engine, mut stage) = open(place.path(), None);
    let content: Vec<u8> = (0..3 * MIB).map(|at| (at / 1000) as u8).collect();
    let entries = a_file(2, "f", &content);
    fill(&mut stage, &entries);
    stage.flush().expect("flushed");
    drop((engine, stage));
    let staged = format!(".mirrorfs/redo/{}.files/2", number(place.path()));
    let file = std::fs::File::options()
        .write(true)
        .open(place.path().join(staged));
    let file = file.expect("a staged file");
    assert_eq!(file.metadata().expect("stat").len(), 3 * MIB as u64);
    // As after a kill between the record and the write.
    file.set_len(3 * MIB as u64 - 1).expect("cut");
    assert_eq!(again(place.path()).entries(), entries.len() as u64 - 1);
}
