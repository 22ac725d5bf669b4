//! The part of `~/.ssh/config` that the built-in client understands. As with OpenSSH, the first
//! value of a setting counts. What it lacks and cannot ignore (a proxy) is an error that says so;
//! `Match` blocks and unknown settings are passed over.

use crate::transport::error::{Error, Result};
use std::path::{Path, PathBuf};

/// How deep files may include each other.
const INCLUDE_DEPTH_MAX: usize = 8;

/// What the configuration says of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostConfig {
    pub host_name: Option<String>,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub identity_files: Vec<PathBuf>,
    pub identities_only: Option<bool>,
    pub identity_agent: Option<String>,
    pub known_hosts: Vec<PathBuf>,
    pub host_key_alias: Option<String>,
    proxy: Option<&'static str>,
}

impl HostConfig {
    /// Reads `~/.ssh/config`; where there is none, everything is unset.
    pub(super) fn load(home: &Path, host: &str) -> Result<HostConfig> {
        let path = home.join(".ssh/config");
        let mut reader = Reader {
            home,
            host,
            config: HostConfig::default(),
        };
        reader.file(&path, true, 0)?;
        match reader.config.proxy.filter(|keyword| !keyword.is_empty()) {
            Some(keyword) => Err(Error::Unsupported {
                path,
                keyword,
                host: host.to_owned(),
            }),
            None => Ok(reader.config),
        }
    }
}

struct Reader<'a> {
    home: &'a Path,
    host: &'a str,
    config: HostConfig,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, applies: bool, depth: usize) -> Result<()> {
        let Some(bytes) = super::read_bounded(path)? else {
            return Ok(());
        };
        let mut applies = applies;
        let outer = applies;
        for line in String::from_utf8_lossy(&bytes).lines() {
            let Some((keyword, value)) = setting(line) else {
                continue;
            };
            match keyword.as_str() {
                "host" => applies = outer && host_matches(&words(value), self.host),
                "match" => {
                    applies = outer && value.trim().eq_ignore_ascii_case("all");
                }
                "include" if applies && depth < INCLUDE_DEPTH_MAX => {
                    for pattern in words(value) {
                        for path in self.included(&pattern) {
                            self.file(&path, true, depth + 1)?;
                        }
                    }
                }
                _ if applies => self.set(&keyword, value),
                _ => {}
            }
        }
        Ok(())
    }

    fn set(&mut self, keyword: &str, value: &str) {
        let Some(first) = words(value).into_iter().next() else {
            return;
        };
        let config = &mut self.config;
        match keyword {
            "hostname" => {
                let name = first.replace("%h", self.host);
                config.host_name.get_or_insert(name);
            }
            "user" => {
                config.user.get_or_insert(first);
            }
            "port" => config.port = config.port.or(first.parse().ok()),
            "identityfile" if !first.eq_ignore_ascii_case("none") => {
                config.identity_files.push(expand(&first, self.home));
            }
            "identitiesonly" => {
                config
                    .identities_only
                    .get_or_insert(first.eq_ignore_ascii_case("yes"));
            }
            "identityagent" => {
                config.identity_agent.get_or_insert(first);
            }
            "userknownhostsfile" if config.known_hosts.is_empty() => {
                config.known_hosts = words(value)
                    .iter()
                    .map(|word| expand(word, self.home))
                    .collect();
            }
            "hostkeyalias" => {
                config.host_key_alias.get_or_insert(first);
            }
            "proxycommand" => proxy(config, "ProxyCommand", &first),
            "proxyjump" => proxy(config, "ProxyJump", &first),
            _ => {}
        }
    }

    /// The files of an `Include`, whose last part may be a pattern.
    fn included(&self, pattern: &str) -> Vec<PathBuf> {
        let mut path = expand(pattern, self.home);
        if path.is_relative() {
            path = self.home.join(".ssh").join(path);
        }
        let (Some(directory), Some(last)) = (path.parent(), path.file_name()) else {
            return Vec::new();
        };
        let last = last.to_string_lossy().into_owned();
        if !last.contains(['*', '?']) {
            return vec![path];
        }
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .filter(|entry| pattern_matches(&last, &entry.file_name().to_string_lossy()))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        found
    }
}

/// The first of `ProxyCommand` and `ProxyJump` counts, `none` too.
fn proxy(config: &mut HostConfig, keyword: &'static str, value: &str) {
    let none = value.eq_ignore_ascii_case("none");
    config.proxy.get_or_insert(if none { "" } else { keyword });
}

/// `keyword value` or `keyword=value`, the keyword in small letters.
fn setting(line: &str) -> Option<(String, &str)> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let end = line
        .find(|c: char| c.is_whitespace() || c == '=')
        .unwrap_or(line.len());
    let value = line[end..].trim_start();
    let value = value.strip_prefix('=').unwrap_or(value).trim();
    Some((line[..end].to_ascii_lowercase(), value))
}

/// Words, of which some may stand in double quotes.
fn words(value: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        if word.starts_with('#') {
            break;
        }
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

fn expand(path: &str, home: &Path) -> PathBuf {
    let tail = path.strip_prefix("~/").or_else(|| path.strip_prefix("%d/"));
    match tail.or_else(|| path.strip_prefix("${HOME}/")) {
        Some(tail) => home.join(tail),
        None => PathBuf::from(path),
    }
}

/// Whether one of the patterns matches and none that starts with `!` does.
pub(super) fn host_matches<S: AsRef<str>>(patterns: &[S], host: &str) -> bool {
    let mut matched = false;
    for pattern in patterns {
        match pattern.as_ref().strip_prefix('!') {
            Some(negated) if pattern_matches(negated, host) => return false,
            Some(_) => {}
            None => matched |= pattern_matches(pattern.as_ref(), host),
        }
    }
    matched
}

/// `*` and `?`, without regard to case. Linear space, at worst the product of the lengths in time.
fn pattern_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte.eq_ignore_ascii_case(&text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_ssh_says() {
        assert!(host_matches(
            &["*.example.org", "!bad.example.org"],
            "a.Example.org"
        ));
        assert!(!host_matches(
            &["*.example.org", "!bad.example.org"],
            "bad.example.org"
        ));
        assert!(pattern_matches("10.0.0.?", "10.0.0.7") && pattern_matches("a*b*c", "axxbyybc"));
        assert!(!pattern_matches("a*b", "abc") && !pattern_matches("", "x"));
    }

    #[test]
    fn the_first_value_counts_and_a_proxy_is_refused() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join(".ssh/conf.d")).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(home.path().join(".ssh").join(name), text).unwrap();
        };
        write(
            "config",
            "Include conf.d/*.conf\nHost box \"other\" # comment\n  HostName=%h.lan\n  Port 2222\n\
             User me\nHost *\n Port 22\n IdentityFile ~/.ssh/k1\n IdentityFile /k2\n\
             Host jump\n ProxyJump gate\nHost direct\n ProxyCommand none\n ProxyJump gate\n",
        );
        write("conf.d/a.conf", "Host box\n  User first\n");
        let config = HostConfig::load(home.path(), "box").unwrap();
        assert_eq!(config.host_name.as_deref(), Some("box.lan"));
        assert_eq!(
            (config.user.as_deref(), config.port),
            (Some("first"), Some(2222))
        );
        let keys = vec![home.path().join(".ssh/k1"), PathBuf::from("/k2")];
        assert_eq!(config.identity_files, keys);
        assert!(matches!(
            HostConfig::load(home.path(), "jump"),
            Err(Error::Unsupported {
                keyword: "ProxyJump",
                ..
            })
        ));
        let none = tempfile::tempdir().unwrap();
        assert_eq!(
            HostConfig::load(none.path(), "box").unwrap(),
            HostConfig::default()
        );
    }
}
