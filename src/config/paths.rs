//! Paths as data: whether one is below another, and paths of any bytes in JSON.

use std::path::Path;

/// Whether `path` is `root` or below it. Both are absolute and without `..`.
#[must_use]
pub fn beneath(path: &Path, root: &Path) -> bool {
    path.starts_with(root)
}

/// A path in JSON: a string if it is UTF-8, else `{"bytes": [...]}`.
pub mod path_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Form {
        Text(String),
        Bytes { bytes: Vec<u8> },
    }

    impl From<&Path> for Form {
        fn from(path: &Path) -> Form {
            match path.to_str() {
                Some(text) => Form::Text(text.to_owned()),
                None => Form::Bytes {
                    bytes: path.as_os_str().as_bytes().to_vec(),
                },
            }
        }
    }

    impl From<Form> for PathBuf {
        fn from(form: Form) -> PathBuf {
            match form {
                Form::Text(text) => text.into(),
                Form::Bytes { bytes } => OsString::from_vec(bytes).into(),
            }
        }
    }

    /// For `serde(with)`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        Form::from(path).serialize(to)
    }

    /// For `serde(with)`.
    ///
    /// # Errors
    /// When it has another form.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(Form::deserialize(from)?.into())
    }
}

/// Several paths in JSON; see [`path_bytes`].
pub mod paths_bytes {
    use super::path_bytes::Form;
    use serde::{Deserialize, Deserializer, Serializer};
    use std::path::{Path, PathBuf};

    /// For `serde(with)`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| Form::from(Path::new(path))))
    }

    /// For `serde(with)`.
    ///
    /// # Errors
    /// When it has another form.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Form>::deserialize(from)?
            .into_iter()
            .map(PathBuf::from)
            .collect())
    }
}
