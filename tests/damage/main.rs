//! Damaged frames: whatever arrives, it is refused or a message within its bounds, nothing panics,
//! and no more memory is taken than a good frame may.

use mirrorfs::limits::{FRAGMENT_BYTES_MAX, MESSAGE_BYTES_MAX};
use mirrorfs::wire::{FRAME_HEADER_BYTES, Message, ToPrimary, ToReplica, WireError, decode};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// How much a decoded message may take for each byte of it: lists of small things are the worst.
const BYTES_PER_BYTE: usize = 32;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count(more: usize, less: usize) {
    // Not there any more while a thread ends.
    let _ = NOW.try_with(|now| {
        now.set((now.get() + more).saturating_sub(less));
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: all is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: what was allocated by `alloc` came from there.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn most_memory<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    MOST.set(before);
    let result = call();
    (result, MOST.get() - before)
}

fn golden() -> Vec<Vec<u8>> {
    let text = include_str!("../compat/frames.hex");
    let digits = text.lines().filter_map(|line| line.split_once(' '));
    let byte = |hex: &str, at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
    digits
        .map(|(_, hex)| (0..hex.len()).step_by(2).map(|at| byte(hex, at)).collect())
        .collect()
}

/// Random numbers that are the same in every run.
struct Dice(blake3::OutputReader);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % limit.max(1) as u64) as usize
    }
}

fn damage(frame: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bad = frame.to_vec();
    for _ in 0..=dice.below(3) {
        let at = FRAME_HEADER_BYTES + dice.below(bad.len() - FRAME_HEADER_BYTES);
        match dice.below(5) {
            0 => bad[at] ^= 1 << dice.below(8),
            1 => bad[at] = dice.below(256) as u8,
            // Varints that claim much.
            2 => bad[at] = 0xff,
            3 => bad.truncate(at.max(FRAME_HEADER_BYTES + 1)),
            _ => {
                let more: Vec<u8> = (0..dice.below(40)).map(|_| dice.below(256) as u8).collect();
                bad.splice(at..at, more);
            }
        }
    }
    seal(bad)
}

// The right length and checksum, so that the damage gets behind them.
fn seal(mut frame: Vec<u8>) -> Vec<u8> {
    let body = &frame[FRAME_HEADER_BYTES..];
    let (length, checksum) = (body.len() as u32, crc32fast::hash(body));
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    frame
}

fn check<M: Message>(frame: &[u8]) {
    let (decoded, memory) = most_memory(|| decode::<M>(frame));
    let bound = FRAGMENT_BYTES_MAX as usize + BYTES_PER_BYTE * frame.len() + 64 * 1024;
    assert!(memory <= bound, "{memory} of {bound} for {frame:02x?}");
    match decoded {
        Ok(Some((consumed, message, bytes))) => {
            assert_eq!(consumed, frame.len());
            message
                .validate()
                .expect("what is decoded is within its bounds");
            assert_eq!(message.bytes_expected(), bytes.len() as u64);
        }
        Ok(None) => panic!("a whole frame is taken for a part of one"),
        Err(WireError::Io(_) | WireError::Truncated { .. } | WireError::Checksum { .. }) => {
            panic!("the damage was not reached")
        }
        Err(_) => {}
    }
}

#[test]
fn damaged_frames_are_refused_or_within_their_bounds() {
    let mut dice = Dice(blake3::Hasher::new().finalize_xof());
    for frame in golden() {
        // The contexts of compression are made once a thread.
        let _ = decode::<ToReplica>(&frame);
        for _ in 0..3000 {
            let bad = damage(&frame, &mut dice);
            check::<ToReplica>(&bad);
            check::<ToPrimary>(&bad);
        }
    }
}

#[test]
fn lists_that_claim_much_and_have_little_take_little() {
    // Rows of records of three bytes each, as many as fit.
    let kinds: [&[u8]; 4] = [&[2, 5, 0, 0], &[1, 1, 1, b'a', 2], &[0], &[0xff]];
    for kind in kinds {
        for claimed in [&[0x80, 0x20][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]] {
            // Records is the eighth message of the replica.
            let mut message = [&[7], claimed].concat();
            while message.len() + kind.len() <= MESSAGE_BYTES_MAX {
                message.extend_from_slice(kind);
            }
            let mut frame = vec![0; FRAME_HEADER_BYTES + 1];
            let length = message.len();
            frame.extend([
                0x80 | length as u8,
                0x80 | (length >> 7) as u8,
                (length >> 14) as u8,
            ]);
            frame.extend(message);
            check::<ToPrimary>(&seal(frame));
        }
    }
}
