//! Compression of a fragment's bytes, where it pays.

use super::frame::WireError;
use std::cell::RefCell;
use zstd::bulk::{Compressor, Decompressor};

/// Fewer bytes are not worth a look.
const WORTHWHILE_BYTES: usize = 128;
/// From so many bytes on, samples tell first whether the rest is worth the time.
const SAMPLED_BYTES: usize = 32 * 1024;
const SAMPLE_BYTES: usize = 4 * 1024;
const SAMPLES: usize = 3;
const LEVEL: i32 = 1;

thread_local! {
    // A context is about a megabyte: one a thread that sends, one a thread that receives.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Appends `bytes` compressed to `out`, if that saves more than a sixteenth. Says whether it
/// has; if not, `out` is as it was.
pub(super) fn pack(bytes: &[u8], out: &mut Vec<u8>) -> bool {
    if bytes.len() <= WORTHWHILE_BYTES {
        return false;
    }
    let start = out.len();
    let packed = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            // Without a context the bytes go as they are.
            *slot = Compressor::new(LEVEL).ok();
        }
        let compressor = slot.as_mut()?;
        if bytes.len() >= SAMPLED_BYTES {
            let gap = (bytes.len() - SAMPLE_BYTES) / (SAMPLES - 1);
            let pays = (0..SAMPLES).any(|sample| {
                let from = sample * gap;
                shrink(compressor, &bytes[from..from + SAMPLE_BYTES], start, out).is_some()
            });
            if !pays {
                return None;
            }
        }
        shrink(compressor, bytes, start, out)
    });
    out.truncate(start + packed.unwrap_or(0));
    packed.is_some()
}

// Compresses to `out[start..]`, which gets just the room in which it pays.
fn shrink(
    compressor: &mut Compressor<'static>,
    bytes: &[u8],
    start: usize,
    out: &mut Vec<u8>,
) -> Option<usize> {
    out.resize(start + bytes.len() - bytes.len() / 16 - 1, 0);
    compressor.compress_to_buffer(bytes, &mut out[start..]).ok()
}

/// Decompresses to exactly `expected` bytes; never holds more.
pub(super) fn unpack(packed: &[u8], expected: u64) -> Result<Vec<u8>, WireError> {
    let capacity = usize::try_from(expected)
        .ok()
        .filter(|_| expected <= crate::limits::FRAGMENT_BYTES_MAX)
        .ok_or(WireError::Length { bytes: expected })?;
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().map_err(WireError::Compression)?),
        };
        let mut bytes = vec![0; capacity];
        let length = decompressor
            .decompress_to_buffer(packed, &mut bytes[..])
            .map_err(WireError::Compression)?;
        bytes.truncate(length);
        Ok(bytes)
    })
}
