//! How a user names a replica.

use super::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// A replica, as the user names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// A directory of this machine, served in this process.
    Local(PathBuf),
    /// A directory of another machine.
    Remote(Remote),
}

/// A directory of another machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// Whom to log in as; `None`: by configuration.
    pub user: Option<String>,
    /// The host's name, its alias in `~/.ssh/config`, or its address (without brackets).
    pub host: String,
    /// The port; `None`: by option or configuration.
    pub port: Option<u16>,
    /// The directory; relative to the user's home unless it starts with `/`.
    pub path: String,
}

impl Target {
    /// Reads `/directory`, `host:path`, `user@host:path` or `ssh://user@host:port/path`. An IPv6
    /// address stands in brackets. As with rsync, a colon before the first slash makes it remote.
    ///
    /// # Errors
    /// [`Error::BadTarget`] says what is wrong with it.
    pub fn parse(text: &str) -> Result<Target> {
        let bad = |reason| Error::BadTarget {
            target: text.to_owned(),
            reason,
        };
        if text.is_empty() || text.contains(['\0', '\n']) {
            return Err(bad("it is empty or has a line break"));
        }
        if let Some(rest) = text.strip_prefix("ssh://") {
            return parse_url(rest).map(Target::Remote).map_err(bad);
        }
        if let Some((scheme, _)) = text.split_once("://")
            && !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(bad("of the URLs only ssh:// is understood"));
        }
        match authority_end(text) {
            None => Ok(Target::Local(PathBuf::from(text))),
            Some(colon) => {
                let (user, host, port) = parse_authority(&text[..colon]).map_err(bad)?;
                let path = &text[colon + 1..];
                if port.is_some() {
                    return Err(bad(
                        "a port needs the form ssh://user@host:port/path, or -p",
                    ));
                }
                if let Some(rest) = path.strip_prefix(':') {
                    return Err(bad(if rest.contains(':') {
                        "an IPv6 address needs brackets: [::1]:/path"
                    } else {
                        "it names an rsync daemon; name a directory: host:/path"
                    }));
                }
                if path.is_empty() {
                    return Err(bad("the directory after the colon is missing"));
                }
                Ok(Target::Remote(Remote {
                    user,
                    host,
                    port,
                    path: path.to_owned(),
                }))
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Local(path) => path.display().fmt(formatter),
            Target::Remote(remote) => remote.fmt(formatter),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = self.host.contains(':');
        let (open, close) = if bracketed { ("[", "]") } else { ("", "") };
        let user = self
            .user
            .as_ref()
            .map(|user| format!("{user}@"))
            .unwrap_or_default();
        let host = format!("{user}{open}{}{close}", self.host);
        match self.port {
            None => write!(formatter, "{host}:{}", self.path),
            Some(port) if self.path.starts_with('/') => {
                write!(formatter, "ssh://{host}:{port}{}", self.path)
            }
            Some(port) => write!(formatter, "ssh://{host}:{port}/~/{}", self.path),
        }
    }
}

/// Where the colon between host and path stands; `None` if the text is a local path.
fn authority_end(text: &str) -> Option<usize> {
    let mut bracket = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => return None,
            b'[' => bracket = true,
            b']' => bracket = false,
            b':' if !bracket => return Some(at),
            _ => {}
        }
    }
    None
}

fn parse_url(rest: &str) -> std::result::Result<Remote, &'static str> {
    let slash = rest
        .find('/')
        .ok_or("the directory is missing: ssh://host/path")?;
    let (user, host, port) = parse_authority(&rest[..slash])?;
    let path = decode(&rest[slash..])?;
    let path = match path.strip_prefix("/~/") {
        Some(relative) if !relative.is_empty() => relative.to_owned(),
        Some(_) => ".".to_owned(),
        None => path,
    };
    Ok(Remote {
        user,
        host,
        port,
        path,
    })
}

type Authority = (Option<String>, String, Option<u16>);

fn parse_authority(text: &str) -> std::result::Result<Authority, &'static str> {
    let (user, rest) = match text.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, text),
    };
    let (host, port) = if let Some(inside) = rest.strip_prefix('[') {
        let (host, after) = inside.split_once(']').ok_or("the bracket is not closed")?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err("between the bracket and the path there is a colon, or a port"),
        };
        (host, port)
    } else {
        match rest.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address needs brackets: [::1]");
            }
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        }
    };
    let port = match port {
        None | Some("") => None,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err("the port is no number from 1 to 65535"),
        },
    };
    for (part, empty) in [
        (user, "the user before the @ is missing"),
        (Some(host), "the host is missing"),
    ] {
        match part {
            Some("") => return Err(empty),
            // It would reach a remote shell as an option.
            Some(part) if part.starts_with('-') => {
                return Err("neither user nor host may start with -");
            }
            Some(part) if part.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                return Err("neither user nor host may have spaces");
            }
            _ => {}
        }
    }
    Ok((user.map(str::to_owned), host.to_owned(), port))
}

/// Undoes `%41`.
fn decode(text: &str) -> std::result::Result<String, &'static str> {
    let bad = "a % in a URL is followed by two hexadecimal digits; write %25 for a % itself";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = after
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(bad)?;
        if value == 0 {
            return Err("a path has no NUL");
        }
        bytes.push(value);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| "the path is no UTF-8; use user@host:path")
}

/// Quotes a word for a POSIX shell. A leading `~/` keeps its meaning.
pub(super) fn quote(word: &str) -> String {
    if let Some(rest) = word.strip_prefix("~/") {
        return format!("~/{}", quote(rest));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%=".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The command line of the remote side.
pub(super) fn serve_command(remote: &Remote, options: &super::Options) -> String {
    let mut words = vec![quote(options.remote_path.as_deref().unwrap_or("mirrorfs"))];
    words.extend(["serve".to_owned(), "--stdio".to_owned()]);
    words.extend(options.serve_arguments.iter().map(|word| quote(word)));
    words.extend(["--".to_owned(), quote(&remote.path)]);
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> Target {
        let (user, host, path) = (user.map(str::to_owned), host.to_owned(), path.to_owned());
        Target::Remote(Remote {
            user,
            host,
            port,
            path,
        })
    }

    #[test]
    fn targets_are_read_as_rsync_reads_them() {
        let cases = [
            ("/a/b", Target::Local("/a/b".into())),
            ("./a:b", Target::Local("./a:b".into())),
            ("h:/p", remote(None, "h", None, "/p")),
            ("u@h:p:q", remote(Some("u"), "h", None, "p:q")),
            ("u@x@h:/p q", remote(Some("u@x"), "h", None, "/p q")),
            ("u@[::1]:/p", remote(Some("u"), "::1", None, "/p")),
            ("ssh://h/p", remote(None, "h", None, "/p")),
            (
                "ssh://u@h:22/p%20q",
                remote(Some("u"), "h", Some(22), "/p q"),
            ),
            (
                "ssh://[fe80::1]:2222/p",
                remote(None, "fe80::1", Some(2222), "/p"),
            ),
            ("ssh://h/~/p", remote(None, "h", None, "p")),
        ];
        for (text, expected) in cases {
            let parsed = Target::parse(text).unwrap();
            assert_eq!(parsed, expected, "{text}");
            assert_eq!(
                Target::parse(&parsed.to_string()).unwrap(),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_target_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "empty"),
            ("h:", "missing"),
            (":/p", "host is missing"),
            ("@h:/p", "user"),
            ("::1:/p", "host is missing"),
            ("fe80::1:/p", "brackets"),
            ("h::m", "rsync daemon"),
            ("-oProxyCommand=x:/p", "-"),
            ("-l@h:/p", "-"),
            ("ssh://h", "missing"),
            ("ssh://h:x/p", "port"),
            ("ssh://h:0/p", "port"),
            ("ssh://::1/p", "brackets"),
            ("ssh://h/%zz", "%25"),
            ("ftp://h/p", "ssh://"),
            ("h x:/p", "spaces"),
        ] {
            match Target::parse(text) {
                Err(Error::BadTarget { reason, .. }) => {
                    assert!(reason.contains(part), "{text}: {reason}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn words_reach_the_remote_shell_whole() {
        for (word, quoted) in [
            ("/a/b", "/a/b"),
            ("a b", "'a b'"),
            ("it's", "'it'\\''s'"),
            ("~/x y", "~/'x y'"),
        ] {
            assert_eq!(quote(word), quoted);
        }
        let Target::Remote(remote) = Target::parse("h:/a;rm -rf $HOME").unwrap() else {
            panic!()
        };
        assert_eq!(
            serve_command(&remote, &super::super::Options::default()),
            "mirrorfs serve --stdio -- '/a;rm -rf $HOME'"
        );
    }
}
