//! Which host keys are known. The files are read before the mount and kept as text; a key that is
//! accepted is appended through a descriptor that was opened then, and remembered.

use super::config::host_matches;
use crate::transport::error::{Error, Result};
use parking_lot::Mutex;
use ssh2::{CheckResult, HashType, HostKeyType, KnownHostFileKind, Session};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The files, and whether one may be added to.
#[derive(Debug)]
pub(super) struct KnownHosts {
    files: Vec<(PathBuf, String)>,
    // Where accepted keys go; only with `--accept-new-host-key`.
    append: Option<File>,
    accepted: Mutex<Vec<String>>,
}

/// One line that speaks of the host.
struct Line<'a> {
    path: &'a Path,
    number: usize,
    revoked: bool,
    key_type: &'a str,
    key: &'a str,
}

impl KnownHosts {
    /// Reads the files that exist. The first one is where an accepted key goes.
    pub(super) fn load(paths: &[PathBuf], accept: bool) -> Result<KnownHosts> {
        let mut files = Vec::new();
        for path in paths {
            let bytes = super::read_bounded(path)?.unwrap_or_default();
            files.push((path.clone(), String::from_utf8_lossy(&bytes).into_owned()));
        }
        let append = match paths.first() {
            Some(path) if accept => Some(open_for_append(path)?),
            _ => None,
        };
        Ok(KnownHosts {
            files,
            append,
            accepted: Mutex::new(Vec::new()),
        })
    }

    /// The host key algorithms to ask for, those of known keys first: a server that has several
    /// keys should show one that we know.
    pub(super) fn preferred(&self, session: &Session, names: &Names) -> String {
        let mut order: Vec<&str> = Vec::new();
        let mut known: Vec<String> = self
            .lines(session, &names.with_port)
            .filter(|line| !line.revoked)
            .map(|line| line.key_type.to_owned())
            .collect();
        known.extend(
            self.accepted
                .lock()
                .iter()
                .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)),
        );
        let all = [
            "ssh-ed25519",
            "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp384",
            "ecdsa-sha2-nistp521",
            "ssh-rsa",
        ];
        for wanted in [true, false] {
            for kind in all {
                if known.iter().any(|known| known == kind) == wanted {
                    match kind {
                        "ssh-rsa" => order.extend(["rsa-sha2-512", "rsa-sha2-256"]),
                        kind => order.push(kind),
                    }
                }
            }
        }
        order.join(",")
    }

    /// Checks the key that the host shows.
    pub(super) fn check(&self, session: &Session, names: &Names) -> Result<()> {
        let missing = || Error::Ssh {
            host: names.plain.clone(),
            during: "reading its host key",
            message: "it shows none".to_owned(),
        };
        let (key, kind) = session.host_key().ok_or_else(missing)?;
        let key = base64(key);
        let key_type = type_name(kind);
        let digest = session
            .host_key_hash(HashType::Sha256)
            .ok_or_else(missing)?;
        let fingerprint = format!("SHA256:{}", base64(digest).trim_end_matches('='));
        let host = names.with_port.clone();
        let entry = format!("{host} {key_type} {key}");
        let mut other = None;
        let mut known = self.accepted.lock().contains(&entry);
        for line in self.lines(session, &names.with_port) {
            match (line.key == key, line.revoked) {
                (true, true) => {
                    let (known_hosts, line) = (line.path.to_owned(), line.number);
                    return Err(Error::HostKeyRevoked {
                        host,
                        known_hosts,
                        line,
                    });
                }
                (true, false) => known = true,
                (false, false) => other = other.or(Some((line.path.to_owned(), line.number))),
                (false, true) => {}
            }
        }
        if known {
            return Ok(());
        }
        if let Some((known_hosts, line)) = other {
            let key_type = key_type.to_owned();
            return Err(Error::HostKeyChanged {
                host,
                key_type,
                fingerprint,
                known_hosts,
                line,
            });
        }
        // As OpenSSH does: the same key under the name without a port is good enough.
        if self
            .lines(session, &names.plain)
            .any(|line| line.key == key && !line.revoked)
        {
            return Ok(());
        }
        let Some(append) = &self.append else {
            let known_hosts = self
                .files
                .first()
                .map(|(path, _)| path.clone())
                .unwrap_or_default();
            let key_type = key_type.to_owned();
            return Err(Error::HostUnknown {
                host,
                key_type,
                fingerprint,
                known_hosts,
            });
        };
        self.accept(append, entry)
    }

    fn accept(&self, mut file: &File, entry: String) -> Result<()> {
        let (path, text) = &self.files[0];
        let start = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        let mut accepted = self.accepted.lock();
        let start = if accepted.is_empty() { start } else { "" };
        file.write_all(format!("{start}{entry}\n").as_bytes())
            .map_err(|source| Error::File {
                action: "add the host key to",
                path: path.clone(),
                source,
            })?;
        accepted.push(entry);
        Ok(())
    }

    /// The lines that speak of `name`.
    fn lines<'a>(&'a self, session: &'a Session, name: &'a str) -> impl Iterator<Item = Line<'a>> {
        self.files.iter().flat_map(move |(path, text)| {
            text.lines().enumerate().filter_map(move |(index, text)| {
                let mut words = text.split_whitespace();
                let mut hosts = words.next()?;
                let mut revoked = false;
                match hosts.as_bytes().first()? {
                    b'#' => return None,
                    b'@' if hosts == "@revoked" => {
                        revoked = true;
                        hosts = words.next()?;
                    }
                    // Certificates are not understood: they are no keys of hosts.
                    b'@' => return None,
                    _ => {}
                }
                let (key_type, key) = (words.next()?, words.next()?);
                let matches = if hosts.starts_with('|') {
                    hashed_matches(session, &format!("{hosts} {key_type} {key}"), name)
                } else {
                    host_matches(&hosts.split(',').collect::<Vec<_>>(), name)
                };
                matches.then_some(Line {
                    path,
                    number: index + 1,
                    revoked,
                    key_type,
                    key,
                })
            })
        })
    }
}

/// How known hosts name a host.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// `[host]:port`, or just the host on port 22.
    pub with_port: String,
    /// The host.
    pub plain: String,
}

impl Names {
    pub(super) fn new(host: &str, port: u16) -> Names {
        let host = host.to_ascii_lowercase();
        let with_port = if port == 22 {
            host.clone()
        } else {
            format!("[{host}]:{port}")
        };
        Names {
            with_port,
            plain: host,
        }
    }
}

/// Whether a line with a hashed name is about `name`: libssh2 knows the hash.
fn hashed_matches(session: &Session, line: &str, name: &str) -> bool {
    let Ok(mut one) = session.known_hosts() else {
        return false;
    };
    if one.read_str(line, KnownHostFileKind::OpenSSH).is_err() {
        return false;
    }
    // It is no key, so it differs from the line's key wherever the name is the same.
    matches!(
        one.check(name, &[0]),
        CheckResult::Mismatch | CheckResult::Match
    )
}

fn type_name(kind: HostKeyType) -> &'static str {
    match kind {
        HostKeyType::Rsa => "ssh-rsa",
        HostKeyType::Dss => "ssh-dss",
        HostKeyType::Ecdsa256 => "ecdsa-sha2-nistp256",
        HostKeyType::Ecdsa384 => "ecdsa-sha2-nistp384",
        HostKeyType::Ecdsa521 => "ecdsa-sha2-nistp521",
        HostKeyType::Ed25519 => "ssh-ed25519",
        HostKeyType::Unknown => "unknown",
    }
}

fn open_for_append(path: &Path) -> Result<File> {
    if let Some(directory) = path.parent()
        && !directory.as_os_str().is_empty()
    {
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|source| Error::File {
            action: "create",
            path: directory.into(),
            source,
        })?;
    }
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path);
    opened.map_err(|source| Error::File {
        action: "write to",
        path: path.into(),
        source,
    })
}

pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > chunk.len() {
                '='
            } else {
                char::from(digit)
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_is_the_usual_one() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(super::base64(bytes.as_bytes()), text);
        }
    }
}
