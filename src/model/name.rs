//! The name of a directory entry.

use crate::limits::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

/// The name in the root of a replica that holds its own records; reserved in the root of a mount.
pub const RESERVED_NAME: &str = ".mirrorfs";

/// A name: 1 to 255 bytes, neither `.` nor `..`, without `/` and NUL. Any bytes otherwise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Box<[u8]>);

/// Bytes that cannot be the name of a directory entry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a name of a directory entry: {0:?}")]
pub struct NameError(pub String);

impl Name {
    /// Checks and takes the bytes.
    ///
    /// # Errors
    /// When they are not a name; nothing decoded from a wire or a disk gets past this.
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Name, NameError> {
        let bytes = bytes.as_ref();
        let bad = bytes.is_empty()
            || bytes.len() > NAME_BYTES_MAX
            || bytes == b"."
            || bytes == b".."
            || bytes.iter().any(|&byte| byte == b'/' || byte == 0);
        if bad {
            let shown = &bytes[..bytes.len().min(NAME_BYTES_MAX)];
            return Err(NameError(String::from_utf8_lossy(shown).into_owned()));
        }
        Ok(Name(bytes.into()))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As the operating system takes it.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = NameError;
    fn try_from(bytes: Vec<u8>) -> Result<Name, NameError> {
        Name::new(bytes)
    }
}

impl TryFrom<&OsStr> for Name {
    type Error = NameError;
    fn try_from(name: &OsStr) -> Result<Name, NameError> {
        Name::new(name.as_bytes())
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Vec<u8> {
        name.0.into_vec()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(&self.0).escape_debug().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(Name::new(bad).is_err());
        }
        for good in [&b"a"[..], b"...", b"\xff\n", &[b'x'; 255]] {
            assert_eq!(Name::new(good).expect("a name").as_bytes(), good);
        }
    }
}
