//! Small files that are written as a whole: magic, format, length, CRC, then postcard.

use super::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// The largest of these files.
const BYTES_MAX: usize = 256 * 1024;
const HEADER_BYTES: usize = 20;

/// A kind of file: its name in the directory, what it begins with, its format.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) magic: &'static [u8; 8],
    pub(super) format: u32,
}

impl Kind {
    fn path(self, directory: &Path) -> PathBuf {
        directory.join(self.name)
    }

    /// Writes it, in place of what is there, and makes it durable.
    pub(super) fn write<T: Serialize>(
        self,
        (fd, path): (BorrowedFd<'_>, &Path),
        value: &T,
    ) -> Result<()> {
        let io = Error::io("write", self.path(path));
        let body = match postcard::to_stdvec(value) {
            Ok(body) if body.len() + HEADER_BYTES <= BYTES_MAX => body,
            _ => return Err(io(io::ErrorKind::FileTooLarge.into())),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(self.magic);
        bytes.extend_from_slice(&self.format.to_le_bytes());
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&checksum(self.format, &body).to_le_bytes());
        bytes.extend_from_slice(&body);
        crate::disk::replace_file(fd, self.name, &bytes).map_err(io)
    }

    /// Reads it; `None` if there is none.
    pub(super) fn read<T: DeserializeOwned>(
        self,
        (fd, path): (BorrowedFd<'_>, &Path),
    ) -> Result<Option<T>> {
        let path = self.path(path);
        let damaged = |detail: &str| Error::Damaged {
            path: path.clone(),
            detail: detail.into(),
        };
        let bytes = match crate::disk::read_file(fd, self.name, BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(damaged(&error.to_string()));
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(damaged("it is cut off"));
        };
        let (words, _) = header[8..].as_chunks::<4>();
        let [format, length, sum] = [0, 1, 2].map(|word| u32::from_le_bytes(words[word]));
        if header[..8] != self.magic[..] {
            return Err(damaged("it begins with something else"));
        }
        // The format is in the checksum, so that a flipped bit is no unknown version.
        if body.len() != length as usize || checksum(format, body) != sum {
            return Err(damaged("its checksum is another"));
        }
        if format != self.format {
            return Err(Error::Version {
                path,
                found: format.to_string(),
                known: self.format,
            });
        }
        match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(Some(value)),
            _ => Err(damaged("it holds something else")),
        }
    }
}

fn checksum(format: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&format.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}
