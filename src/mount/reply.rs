//! Answers that several requests share.

use super::convert::file_attr;
use super::errno::errno_of;
use crate::backing::Attr;
use fuser::{Errno, Generation, ReplyEmpty, ReplyEntry, ReplyXattr};
use std::io;
use std::time::Duration;

/// How long the kernel may keep names (also those that do not exist) and attributes: long, since
/// every change comes through the mount and the kernel forgets what it changes itself.
pub(super) const TTL: Duration = Duration::from_secs(3600);

/// FileIds are never reused, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);

/// Answers an error with its errno, else does what is given.
macro_rules! answer {
    ($reply:ident, $result:expr, $value:pat => $ok:expr) => {
        match $result {
            Ok($value) => $ok,
            Err(error) => $reply.error(errno_of(&error)),
        }
    };
}
pub(super) use answer;

pub(super) fn reply_entry(reply: ReplyEntry, result: io::Result<Attr>) {
    answer!(reply, result, attr => reply.entry(&TTL, &file_attr(&attr), GENERATION))
}

pub(super) fn reply_empty(reply: ReplyEmpty, result: io::Result<()>) {
    answer!(reply, result, () => reply.ok())
}

pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, result: io::Result<Vec<u8>>) {
    answer!(reply, result, value => match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(&value),
        _ => reply.error(Errno::ERANGE),
    })
}
