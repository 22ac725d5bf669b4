//! The hot set of the journal, version 1.

use mirrorfs::journal::{Journal, Options, Suspects};
use mirrorfs::model::{EpochId, FileId};
use mirrorfs::records::Records;
use std::path::Path;
use std::sync::Arc;

const HEAD: &str = "6d66732d686f740a010000008c1bc607";
const FILE_5: &str = "0500000000000000010000001ad6ca5b";
const FILE_LONG: &str = "080706050403020101000000a36bdd6e";
const EVERYTHING: &str = "000000000000000002000000e40edcd1";

fn bytes(slots: &[&str]) -> Vec<u8> {
    let digits = slots.concat();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn open(place: &Path) -> (Journal, Suspects) {
    let options = Options {
        directory: std::fs::File::open(place).expect("a directory").into(),
        next_epoch: EpochId(1),
        next_id: FileId::FIRST,
        reserve: Arc::new(|_| Ok(())),
    };
    let index = place.join("index");
    let index = Records::open(&index)
        .or_else(|_| Records::create(&index))
        .expect("an index");
    Journal::open(options, index).expect("a journal")
}

#[test]
fn a_hot_set_is_read_and_written_as_ever() {
    let place = tempfile::tempdir().expect("a directory");
    let hot = place.path().join("hot");
    std::fs::write(&hot, bytes(&[HEAD, FILE_5, FILE_LONG])).expect("written");
    let files = vec![FileId(5), FileId(0x0102_0304_0506_0708)];
    let (journal, suspects) = open(place.path());
    assert_eq!(suspects, Suspects::Files(files));
    drop(journal);
    // The order of the records is free.
    let written = std::fs::read(&hot).expect("read");
    let mut slots: Vec<&[u8]> = written.chunks(16).take(3).collect();
    slots[1..].sort_unstable_by_key(|slot| slot[1]);
    assert_eq!(slots.concat(), bytes(&[HEAD, FILE_5, FILE_LONG]));
    assert!(written[3 * 16..].iter().all(|&byte| byte == 0));

    std::fs::write(&hot, bytes(&[HEAD, EVERYTHING])).expect("written");
    assert_eq!(open(place.path()).1, Suspects::Everything);
    // Of a version that is not known nothing is believed.
    let newer = HEAD.replace("0a01", "0a02");
    std::fs::write(&hot, bytes(&[&newer, FILE_5])).expect("written");
    assert_eq!(open(place.path()).1, Suspects::Everything);
    std::fs::write(&hot, bytes(&[HEAD])).expect("written");
    assert_eq!(open(place.path()).1, Suspects::None);
}
