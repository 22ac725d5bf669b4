//! Asking a person for a secret.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, Stdio};

/// Somebody who can be asked.
pub trait Prompt {
    /// The answer to `question`, or `None` if there is nobody, or they do not say.
    fn secret(&self, question: &str) -> Option<String>;
}

/// Asks nobody: for a daemon.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl Prompt for Never {
    fn secret(&self, _question: &str) -> Option<String> {
        None
    }
}

/// Asks on the controlling terminal, without echo; where there is none, through the program in
/// `SSH_ASKPASS`. With `SSH_ASKPASS_REQUIRE=force` (or `prefer`) the program comes first.
#[derive(Clone, Debug, Default)]
pub struct Terminal {
    /// The program of `SSH_ASKPASS`.
    pub askpass: Option<OsString>,
    /// Whether it comes first.
    pub askpass_first: bool,
}

impl Terminal {
    /// As the environment says.
    #[must_use]
    pub fn from_environment() -> Terminal {
        let require = std::env::var("SSH_ASKPASS_REQUIRE").unwrap_or_default();
        Terminal {
            askpass: std::env::var_os("SSH_ASKPASS")
                .filter(|program| !program.is_empty() && require != "never"),
            askpass_first: require == "force" || require == "prefer",
        }
    }
}

impl Prompt for Terminal {
    fn secret(&self, question: &str) -> Option<String> {
        if self.askpass_first && self.askpass.is_some() {
            return ask_program(self.askpass.as_ref()?, question);
        }
        match OpenOptions::new().read(true).write(true).open("/dev/tty") {
            Ok(terminal) => ask_terminal(&terminal, question).ok().flatten(),
            Err(_) => ask_program(self.askpass.as_ref()?, question),
        }
    }
}

fn ask_program(program: &OsString, question: &str) -> Option<String> {
    let output = Command::new(program)
        .arg(question)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask_terminal(terminal: &File, question: &str) -> io::Result<Option<String>> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let before = tcgetattr(terminal)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let mut out: &File = terminal;
    write!(out, "{question}")?;
    tcsetattr(terminal, OptionalActions::Flush, &silent)?;
    let mut answer = String::new();
    let read = BufReader::new(terminal).read_line(&mut answer);
    tcsetattr(terminal, OptionalActions::Flush, &before)?;
    writeln!(out)?;
    let complete = read? > 0;
    Ok(complete.then(|| answer.trim_end_matches(['\r', '\n']).to_owned()))
}
