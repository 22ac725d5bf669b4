//! Getting in: what there is to show, and in which order.
//!
//! Order: keys that the user named, keys of the agent, keys at the usual places, then what a
//! person must be asked for. Answers are kept in memory, for reconnects.

use super::prompt::Prompt;
use crate::transport::error::{Error, Result};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use ssh2::{ErrorCode, KeyboardInteractivePrompt, Session};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `LIBSSH2_ERROR_*` after which the session is of no more use.
const BROKEN: [i32; 5] = [-7, -9, -13, -27, -43];

/// What there is to show.
#[derive(Debug)]
pub(super) struct Credentials {
    keys: Vec<Key>,
    // The agent's socket, opened with O_PATH: its path may be covered by the mount later.
    agent: Option<OwnedFd>,
    identities_only: bool,
    password: Mutex<Option<String>>,
}

/// A private key.
struct Key {
    path: PathBuf,
    named: bool,
    text: String,
    public: Option<String>,
    passphrase: Mutex<Option<String>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Key")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads what there is. A named key must be readable; others may be absent.
    pub(super) fn load(
        named: &[PathBuf],
        configured: &[PathBuf],
        home: Option<&Path>,
        agent: Option<&Path>,
        identities_only: bool,
    ) -> Result<Credentials> {
        let mut keys = Vec::new();
        for path in named {
            let key = Key::read(path, true)?.ok_or_else(|| Error::File {
                action: "read the key",
                path: path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            })?;
            keys.push(key);
        }
        let usual = ["id_ed25519", "id_ecdsa", "id_rsa"];
        let usual = home.map(|home| usual.map(|name| home.join(".ssh").join(name)));
        let others: &[PathBuf] = match &usual {
            Some(usual) if named.is_empty() && configured.is_empty() => usual,
            _ => configured,
        };
        for path in others {
            // One that may not be read is as good as absent: nobody named it here.
            keys.extend(Key::read(path, false).ok().flatten());
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let agent = agent.and_then(|path| rustix::fs::open(path, flags, Mode::empty()).ok());
        Ok(Credentials {
            keys,
            agent,
            identities_only,
            password: Mutex::new(None),
        })
    }

    /// Gets in, or says what was tried.
    pub(super) fn authenticate(
        &self,
        session: &Session,
        host: &str,
        user: &str,
        prompt: &dyn Prompt,
    ) -> Result<()> {
        let mut attempt = Attempt {
            session,
            host,
            user,
            prompt,
            tried: Vec::new(),
        };
        let methods = match session.auth_methods(user) {
            Ok(methods) => methods.to_owned(),
            Err(_) if session.authenticated() => return Ok(()),
            Err(error) => return Err(attempt.broken(&error)),
        };
        let offers = |method: &str| methods.split(',').any(|offered| offered == method);
        if offers("publickey") && self.with_keys(&mut attempt)? {
            return Ok(());
        }
        if offers("keyboard-interactive") && attempt.interactive(&self.password)? {
            return Ok(());
        }
        if offers("password") && attempt.password(&self.password)? {
            return Ok(());
        }
        if attempt.tried.is_empty() {
            attempt
                .tried
                .push("nothing: no key and no agent was found".to_owned());
        }
        let tried = format!("{}; it offers {methods}", attempt.tried.join(", "));
        Err(Error::AuthenticationRefused {
            host: host.to_owned(),
            user: user.to_owned(),
            tried,
        })
    }

    fn with_keys(&self, attempt: &mut Attempt<'_>) -> Result<bool> {
        let plain = |key: &&Key| !key.is_encrypted() || key.passphrase.lock().is_some();
        for key in self.keys.iter().filter(|key| key.named).filter(plain) {
            if attempt.key(key, key.passphrase.lock().as_deref())? {
                return Ok(true);
            }
        }
        if let Some(agent) = &self.agent
            && attempt.agent(agent, self.identities_only.then_some(&self.keys))?
        {
            return Ok(true);
        }
        for key in self.keys.iter().filter(|key| !key.named).filter(plain) {
            if attempt.key(key, key.passphrase.lock().as_deref())? {
                return Ok(true);
            }
        }
        for key in self.keys.iter().filter(|key| !plain(key)) {
            let question = format!("Passphrase for {}: ", key.path.display());
            let Some(answer) = attempt.prompt.secret(&question) else {
                attempt
                    .tried
                    .push(format!("{} (encrypted, nobody to ask)", key.path.display()));
                continue;
            };
            if attempt.key(key, Some(&answer))? {
                *key.passphrase.lock() = Some(answer);
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Key {
    fn read(path: &Path, named: bool) -> Result<Option<Key>> {
        let Some(bytes) = super::read_bounded(path)? else {
            return Ok(None);
        };
        let Ok(text) = String::from_utf8(bytes) else {
            return Ok(None);
        };
        let mut public = path.as_os_str().to_owned();
        public.push(".pub");
        let public = super::read_bounded(Path::new(&public)).ok().flatten();
        let public = public.and_then(|bytes| String::from_utf8(bytes).ok());
        let passphrase = Mutex::new(None);
        Ok(Some(Key {
            path: path.to_owned(),
            named,
            text,
            public,
            passphrase,
        }))
    }

    /// The OpenSSH format names its cipher right after its magic; `none` is spelt so in base64.
    fn is_encrypted(&self) -> bool {
        match self.text.split_once("-----BEGIN OPENSSH PRIVATE KEY-----") {
            Some((_, body)) => !body
                .trim_start()
                .starts_with("b3BlbnNzaC1rZXktdjEAAAAABG5vbm"),
            None => self.text.contains("ENCRYPTED"),
        }
    }

    /// Whether the agent's key with this blob is this one.
    fn is(&self, blob: &[u8]) -> bool {
        let words = self
            .public
            .as_deref()
            .map(|text| text.split_whitespace().nth(1));
        words.flatten() == Some(super::known_hosts::base64(blob).as_str())
    }
}

/// One conversation.
struct Attempt<'a> {
    session: &'a Session,
    host: &'a str,
    user: &'a str,
    prompt: &'a dyn Prompt,
    tried: Vec<String>,
}

impl Attempt<'_> {
    fn broken(&self, error: &ssh2::Error) -> Error {
        if !self.tried.is_empty() && matches!(error.code(), ErrorCode::Session(-13 | -43)) {
            // A server hangs up when it has seen enough wrong keys.
            let tried = format!("{}; then it hung up", self.tried.join(", "));
            let (host, user) = (self.host.to_owned(), self.user.to_owned());
            return Error::AuthenticationRefused { host, user, tried };
        }
        let message = error.message().to_owned();
        Error::Ssh {
            host: self.host.to_owned(),
            during: "authenticating",
            message,
        }
    }

    /// Whether it got in; what was refused is written down, what is broken ends it all.
    fn result(
        &mut self,
        what: String,
        result: std::result::Result<(), ssh2::Error>,
    ) -> Result<bool> {
        match result {
            Ok(()) => return Ok(true),
            Err(error) => {
                let broken = matches!(error.code(), ErrorCode::Session(c) if BROKEN.contains(&c));
                self.tried.push(match error.code() {
                    ErrorCode::Session(-18 | -19) => what,
                    _ => format!("{what} ({})", error.message()),
                });
                if broken {
                    return Err(self.broken(&error));
                }
            }
        }
        Ok(false)
    }

    fn key(&mut self, key: &Key, passphrase: Option<&str>) -> Result<bool> {
        let result = self
            .session
            .userauth_pubkey_memory(self.user, None, &key.text, passphrase);
        self.result(format!("key {}", key.path.display()), result)
    }

    fn agent(&mut self, socket: &OwnedFd, only: Option<&Vec<Key>>) -> Result<bool> {
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let connected = self.session.agent().and_then(|mut agent| {
            agent.set_identity_path(Path::new(&path))?;
            agent.connect()?;
            agent.list_identities()?;
            let identities = agent.identities()?;
            Ok((agent, identities))
        });
        let (agent, identities) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                self.tried.push(format!("the agent ({})", error.message()));
                return Ok(false);
            }
        };
        for identity in identities {
            if only.is_some_and(|keys| !keys.iter().any(|key| key.is(identity.blob()))) {
                continue;
            }
            let result = agent.userauth(self.user, &identity);
            if self.result(format!("agent's key {}", identity.comment()), result)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn password(&mut self, remembered: &Mutex<Option<String>>) -> Result<bool> {
        let question = format!("{}@{}'s password: ", self.user, self.host);
        let known = remembered.lock().clone();
        let Some(answer) = known.or_else(|| self.prompt.secret(&question)) else {
            return Ok(false);
        };
        let result = self.session.userauth_password(self.user, &answer);
        let inside = self.result("a password".to_owned(), result)?;
        *remembered.lock() = inside.then_some(answer);
        Ok(inside)
    }

    fn interactive(&mut self, remembered: &Mutex<Option<String>>) -> Result<bool> {
        let known = remembered.lock().clone();
        let mut answers = Answers {
            known,
            given: None,
            prompt: self.prompt,
            asked: false,
        };
        let result = self
            .session
            .userauth_keyboard_interactive(self.user, &mut answers);
        if !answers.asked {
            return Ok(result.is_ok());
        }
        let inside = self.result("keyboard-interactive".to_owned(), result)?;
        *remembered.lock() = answers.given.filter(|_| inside);
        Ok(inside)
    }
}

/// Answers the server's questions; only a single one for a secret is answered from memory.
struct Answers<'a> {
    known: Option<String>,
    given: Option<String>,
    prompt: &'a dyn Prompt,
    asked: bool,
}

impl KeyboardInteractivePrompt for Answers<'_> {
    fn prompt<'b>(
        &mut self,
        _username: &str,
        _instructions: &str,
        prompts: &[ssh2::Prompt<'b>],
    ) -> Vec<String> {
        let mut answers = Vec::new();
        for question in prompts {
            let known = self
                .known
                .clone()
                .filter(|_| prompts.len() == 1 && !question.echo);
            let Some(answer) = known.or_else(|| self.prompt.secret(&question.text)) else {
                return Vec::new();
            };
            self.asked = true;
            if prompts.len() == 1 && !question.echo {
                self.given = Some(answer.clone());
            }
            answers.push(answer);
        }
        answers
    }
}
