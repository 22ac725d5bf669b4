use super::super::{Decoder, Encoder, ToPrimary, ToReplica};
use super::*;
use crate::limits::{BLOCK_BYTES, FRAGMENT_BYTES_MAX};
use crate::model::{BlockHash, Body, Entry, EpochId, Extent, FileId, Fragment, blocks_of};
use proptest::prelude::*;

fn fragment(offset: u64, length: u64, body: Body) -> ToReplica {
    let extent = Extent::new(offset, length);
    let touched = blocks_of(extent);
    let blocks = (touched.start..touched.end)
        .map(|block| BlockHash([block as u8; 32]))
        .collect();
    let fragment = Fragment {
        file: FileId(7),
        extent,
        body,
        blocks,
    };
    ToReplica::Stage {
        sequence: 3,
        entry: Entry::Fragment(fragment),
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn frame(message: &ToReplica, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, Some(bytes), &mut out).expect("a good message");
    out
}

// Makes the checksum right again, so that damage reaches what lies behind it.
fn seal(frame: &mut [u8]) {
    if frame.len() > FRAME_HEADER_BYTES {
        let size = (frame.len() - FRAME_HEADER_BYTES) as u32;
        let checksum = crc32fast::hash(&frame[FRAME_HEADER_BYTES..]);
        frame[..4].copy_from_slice(&size.to_le_bytes());
        frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[test]
fn a_small_frame_has_little_around_its_message() {
    let mut out = vec![9];
    assert_eq!(
        encode(&ToReplica::Ping(5), None, &mut out).expect("encodes"),
        12
    );
    assert_eq!(out.len(), 13);
    let bytes = noise(4096);
    let message = fragment(8192, 4096, Body::Bytes);
    let encoded = postcard::to_stdvec(&message).expect("encodes").len();
    assert!(frame(&message, &bytes).len() <= encoded + bytes.len() + 12);
}

#[test]
fn bytes_are_compressed_when_that_pays() {
    let length = FRAGMENT_BYTES_MAX as usize;
    let message = fragment(0, FRAGMENT_BYTES_MAX, Body::Bytes);
    let text: Vec<u8> = b"all work and no play "
        .iter()
        .copied()
        .cycle()
        .take(length)
        .collect();
    let mut half = noise(length);
    half[length / 2..].fill(b'x');
    for (bytes, most) in [
        (&text, length / 20),
        (&noise(length), length + 1000),
        (&half, length * 2 / 3),
    ] {
        let frame = frame(&message, bytes);
        assert!(frame.len() <= most, "{} of {most}", frame.len());
        let (consumed, decoded, got) = decode::<ToReplica>(&frame).expect("good").expect("whole");
        assert_eq!((consumed, &decoded, &got), (frame.len(), &message, bytes));
    }
    // Worst at the edge: bytes that save hardly anything.
    for length in [1u64, 128, 129, 200, 32 * 1024, 32 * 1024 + 1] {
        let message = fragment(0, length, Body::Bytes);
        for bytes in [vec![1; length as usize], noise(length as usize)] {
            let frame = frame(&message, &bytes);
            assert_eq!(
                decode::<ToReplica>(&frame).expect("good").expect("whole").2,
                bytes
            );
        }
    }
}

#[test]
fn what_does_not_belong_together_is_not_sent() {
    let mut out = b"before".to_vec();
    let good = fragment(0, 10, Body::Bytes);
    let hole = fragment(0, 10, Body::Hole);
    assert!(matches!(
        encode(&good, None, &mut out),
        Err(WireError::Bytes { .. })
    ));
    assert!(matches!(
        encode(&good, Some(b"123"), &mut out),
        Err(WireError::Bytes { .. })
    ));
    assert!(matches!(
        encode(&hole, Some(b"1"), &mut out),
        Err(WireError::Bytes { .. })
    ));
    let long = fragment(0, FRAGMENT_BYTES_MAX + BLOCK_BYTES, Body::Bytes);
    assert!(matches!(
        encode(&long, None, &mut out),
        Err(WireError::Invalid(_))
    ));
    let talk = ToPrimary::Stalled {
        message: "x".repeat(1 << 20),
    };
    assert!(matches!(
        encode(&talk, None, &mut out),
        Err(WireError::Invalid(_))
    ));
    assert_eq!(out, b"before");
    let mut encoder = Encoder::new(Vec::new());
    assert!(encoder.send(&good, None).is_err());
    encoder.flush().expect("a vector");
    assert!(encoder.get_ref().is_empty());
}

#[test]
fn a_bomb_is_not_unpacked() {
    // One byte is announced; a megabyte of zeros is in it.
    let packed = zstd::bulk::compress(&vec![0; 64 << 20], 1).expect("compresses");
    let message = postcard::to_stdvec(&fragment(0, 1, Body::Bytes)).expect("encodes");
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    frame.push(COMPRESSED);
    frame.push(message.len() as u8);
    frame.extend_from_slice(&message);
    frame.extend_from_slice(&packed);
    seal(&mut frame);
    assert!(matches!(
        decode::<ToReplica>(&frame),
        Err(WireError::Compression(_))
    ));
}

#[test]
fn text_is_not_taken_for_frames() {
    let banner = b"Welcome to the backup host!\n";
    assert!(matches!(
        decode::<ToPrimary>(banner),
        Err(WireError::Length { .. })
    ));
    assert!(matches!(
        decode::<ToPrimary>(&[0; 64]),
        Err(WireError::Length { .. })
    ));
}

#[test]
fn a_stream_ends_between_frames_or_is_torn() {
    let mut encoder = Encoder::new(Vec::new());
    let bytes = noise(100_000);
    for round in 0..40 {
        encoder
            .send(&fragment(round, 100_000, Body::Bytes), Some(&bytes))
            .expect("a vector");
        encoder
            .send(&ToReplica::Ping(round), None)
            .expect("a vector");
    }
    encoder.flush().expect("a vector");
    let stream = encoder.get_ref();
    let mut decoder = Decoder::new(Dribble {
        from: stream,
        step: 1,
    });
    for round in 0..40 {
        let (_, got) = decoder.receive::<ToReplica>().expect("good").expect("more");
        assert_eq!(got, bytes);
        let (message, got) = decoder.receive::<ToReplica>().expect("good").expect("more");
        assert_eq!((message, got.len()), (ToReplica::Ping(round), 0));
    }
    assert!(decoder.receive::<ToReplica>().expect("good").is_none());
    let mut torn = Decoder::new(&stream[..stream.len() - 1]);
    let error = loop {
        match torn.receive::<ToReplica>() {
            Ok(message) => assert!(message.is_some()),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, WireError::Truncated { missing: 1 }),
        "{error}"
    );
}

// Reads pieces of growing odd sizes.
struct Dribble<'a> {
    from: &'a [u8],
    step: usize,
}

impl std::io::Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.step = self.step * 7 % 30_011;
        let count = self.step.min(buffer.len()).min(self.from.len());
        buffer[..count].copy_from_slice(&self.from[..count]);
        self.from = &self.from[count..];
        Ok(count)
    }
}

proptest! {
    #[test]
    fn fragments_survive_the_wire(
        offset in 0u64..1 << 40, seed in any::<u64>(), length in 1usize..200_000, runs in 0usize..9,
    ) {
        let mut bytes = noise(length);
        for run in 0..runs {
            let at = (seed as usize).wrapping_mul(run + 1) % length;
            let end = length.min(at + length / 8 + 1);
            bytes[at..end].fill(run as u8);
        }
        let message = fragment(offset, length as u64, Body::Bytes);
        let frame = frame(&message, &bytes);
        prop_assert!(decode::<ToReplica>(&frame[..frame.len() - 1]).expect("so far good").is_none());
        let (consumed, decoded, got) = decode::<ToReplica>(&frame).expect("good").expect("whole");
        prop_assert_eq!((consumed, decoded, got), (frame.len(), message, bytes));
    }

    #[test]
    fn noise_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), fix in any::<bool>()) {
        let mut bytes = bytes;
        if fix { seal(&mut bytes); }
        let _ = decode::<ToReplica>(&bytes);
        let _ = decode::<ToPrimary>(&bytes);
        let _ = super::super::decode_entry(&bytes);
    }

    #[test]
    fn a_flipped_bit_is_noticed(
        length in 1u64..5000, flip in any::<prop::sample::Index>(), bit in 0u8..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = vec![b'y'; length as usize];
        let good = frame(&fragment(1000, length, Body::Bytes), &bytes);
        let mut bad = good.clone();
        bad[flip.index(good.len())] ^= 1 << bit;
        // A longer length waits for more, until the stream ends; all else is an error.
        prop_assert!(!matches!(decode::<ToReplica>(&bad), Ok(Some(_))));
        prop_assert!(!matches!(Decoder::new(&bad[..]).receive::<ToReplica>(), Ok(Some(_))));
        // Behind a right checksum it may be a good message, but never one out of bounds.
        for mut bad in [bad, good[..cut.index(good.len())].to_vec()] {
            seal(&mut bad);
            if let Ok(Some((consumed, message, bytes))) = decode::<ToReplica>(&bad) {
                prop_assert_eq!(consumed, bad.len());
                prop_assert!(message.validate().is_ok());
                prop_assert_eq!(message.bytes_expected(), bytes.len() as u64);
            }
        }
    }
}

#[test]
fn lists_are_cut_at_their_bound() {
    use super::super::RecordItem;
    let item = || RecordItem::Blocks {
        file: FileId(2),
        first: 0,
        hashes: vec![BlockHash([1; 32])],
    };
    let many: Vec<RecordItem> = (0..=crate::limits::RECORDS_MAX).map(|_| item()).collect();
    let encoded = postcard::to_stdvec(&ToPrimary::Records(many)).expect("encodes");
    assert!(postcard::from_bytes::<ToPrimary>(&encoded).is_err());
    let weight = item().weight();
    assert!(postcard::to_stdvec(&item()).expect("encodes").len() <= weight);
    let epoch = ToPrimary::Durable(EpochId(9));
    let mut out = Vec::new();
    encode(&epoch, None, &mut out).expect("encodes");
    assert_eq!(
        decode::<ToPrimary>(&out).expect("good").expect("whole").1,
        epoch
    );
}
