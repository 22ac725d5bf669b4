//! What a user chooses: durability modes and options, as values; and the description of a
//! mirror that its state directory keeps. No I/O.
//!
//! Every type parses from what the command line has and prints the same again; `mirror.json`
//! holds the printed form.

mod duration;
mod mirror;
mod paths;

pub use duration::{parse_duration, show_duration};
pub use mirror::{MIRROR_VERSION, Mirror, MountFlags, Options};
pub use paths::{beneath, path_bytes, paths_bytes};

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A word or a value on the command line that is none of those that it can be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not a duration.
    #[error("{0:?} is not a duration: write 500ms, 10s, 5m or 1h")]
    Duration(String),
    /// Not a mode of an option.
    #[error("{value:?} is not a value of --{option}: it takes {choices}")]
    Choice {
        /// The option, without dashes.
        option: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        choices: &'static str,
    },
}

/// When a change is on the primary's stable storage (`--local`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Local {
    /// Before it is acknowledged.
    Always,
    /// When the file is closed.
    Close,
    /// At most this much later.
    Interval(Duration),
    /// When the kernel decides.
    #[default]
    Os,
}

/// What `fsync` waits for at the replica (`--remote`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Remote {
    /// Nothing.
    #[default]
    Async,
    /// Until the replica has it in memory.
    Received,
    /// Until the replica has it on stable storage.
    Durable,
}

/// What becomes of an `fsync` that waited for `--remote-timeout` (`--on-degraded`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDegraded {
    /// It fails with EIO; the next one tries again.
    #[default]
    Error,
    /// It succeeds, and so do those after it without a wait, until the replica has caught up.
    Continue,
}

impl FromStr for Local {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Local, ConfigError> {
        match text {
            "always" => Ok(Local::Always),
            "close" => Ok(Local::Close),
            "os" => Ok(Local::Os),
            other => match parse_duration(other) {
                Ok(interval) if !interval.is_zero() => Ok(Local::Interval(interval)),
                _ => Err(ConfigError::Choice {
                    option: "local",
                    value: other.to_owned(),
                    choices: "always, close, os or a duration such as 1s",
                }),
            },
        }
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Local::Always => f.write_str("always"),
            Local::Close => f.write_str("close"),
            Local::Interval(interval) => f.write_str(&show_duration(*interval)),
            Local::Os => f.write_str("os"),
        }
    }
}

macro_rules! words {
    ($name:ident, $option:literal, $choices:literal, $($variant:ident = $word:literal),*) => {
        impl FromStr for $name {
            type Err = ConfigError;
            fn from_str(text: &str) -> Result<$name, ConfigError> {
                match text {
                    $($word => Ok($name::$variant),)*
                    other => Err(ConfigError::Choice {
                        option: $option,
                        value: other.to_owned(),
                        choices: $choices,
                    }),
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$variant => $word),* })
            }
        }
    };
}
words!(
    Remote,
    "remote",
    "async, received or durable",
    Async = "async",
    Received = "received",
    Durable = "durable"
);
words!(
    OnDegraded,
    "on-degraded",
    "error or continue",
    Error = "error",
    Continue = "continue"
);

/// Serializes what parses and prints as a string.
macro_rules! as_text {
    ($($name:ty),*) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
as_text!(Local, Remote, OnDegraded);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_parse_and_print_the_same() {
        for text in ["always", "close", "os", "1s", "250ms", "5m"] {
            assert_eq!(text.parse::<Local>().expect("a mode").to_string(), text);
        }
        for text in ["async", "received", "durable"] {
            assert_eq!(text.parse::<Remote>().expect("a mode").to_string(), text);
        }
        for text in ["error", "continue"] {
            assert_eq!(
                text.parse::<OnDegraded>().expect("a mode").to_string(),
                text
            );
        }
        for text in ["", "never", "0s", "-1s"] {
            assert!(text.parse::<Local>().is_err(), "{text}");
        }
        let refused = "sync"
            .parse::<Remote>()
            .expect_err("not a mode")
            .to_string();
        assert!(refused.contains("async, received or durable"), "{refused}");
    }
}
