//! The bounds of each message, checked after decoding and before sending.

use super::message::{Hello, RecordItem, ToPrimary, ToReplica, Welcome};
use crate::limits::{BLOCKS_ITEM_MAX, RECORDS_MAX, TEXT_BYTES_MAX};
use crate::model::{BlockHash, Body, Commit, Entry, FileId, RESERVED_NAME};
use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, marker::PhantomData};

/// What is wrong with a message that could be decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub &'static str);

/// What can be sent in a frame.
pub trait Message: Serialize + DeserializeOwned {
    /// Whether it is within its bounds.
    ///
    /// # Errors
    /// What is out of bounds.
    fn validate(&self) -> Result<(), Invalid>;

    /// How many bytes come with it: those of a fragment with [`Body::Bytes`], else none.
    fn bytes_expected(&self) -> u64 {
        0
    }
}

fn check(condition: bool, otherwise: &'static str) -> Result<(), Invalid> {
    if condition {
        Ok(())
    } else {
        Err(Invalid(otherwise))
    }
}

fn text(text: &str) -> Result<(), Invalid> {
    check(text.len() <= TEXT_BYTES_MAX, "a text that is too long")
}

/// Cuts a text for people to what a message may carry.
#[must_use]
pub fn bounded_text(mut text: String) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

impl Message for ToReplica {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            ToReplica::Hello(Hello { program, .. }) => text(program),
            ToReplica::Stage { entry, .. } => check(entry.is_valid(), "an entry out of bounds"),
            ToReplica::Commit(commit) => commit_in_bounds(commit),
            ToReplica::Truncate { .. }
            | ToReplica::Apply
            | ToReplica::FetchRecords
            | ToReplica::Ping(_)
            | ToReplica::Goodbye => Ok(()),
        }
    }

    fn bytes_expected(&self) -> u64 {
        match self {
            ToReplica::Stage {
                entry: Entry::Fragment(fragment),
                ..
            } if fragment.body == Body::Bytes => fragment.extent.length,
            _ => 0,
        }
    }
}

fn commit_in_bounds(commit: &Commit) -> Result<(), Invalid> {
    check(
        commit.parent < commit.epoch,
        "an epoch that does not come after its parent",
    )?;
    check(
        commit.sealed_at.nanos < 1_000_000_000,
        "a time that is none",
    )
}

impl Message for ToPrimary {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            ToPrimary::Welcome(welcome) => welcome_in_bounds(welcome),
            ToPrimary::Refused { message, .. } | ToPrimary::Stalled { message } => text(message),
            ToPrimary::Records(items) => {
                check(items.len() <= RECORDS_MAX, "too many records at once")?;
                items.iter().try_for_each(Message::validate)
            }
            ToPrimary::Staged { .. }
            | ToPrimary::Received(_)
            | ToPrimary::Durable(_)
            | ToPrimary::Applied { .. }
            | ToPrimary::Suspect { .. }
            | ToPrimary::RecordsEnd { .. }
            | ToPrimary::Pong(_) => Ok(()),
        }
    }
}

fn welcome_in_bounds(welcome: &Welcome) -> Result<(), Invalid> {
    text(&welcome.program)?;
    check(
        welcome.applied <= welcome.durable,
        "a replica that applied what is not durable",
    )
}

impl Message for RecordItem {
    fn validate(&self) -> Result<(), Invalid> {
        match self {
            RecordItem::Object { object, .. } => {
                check(object.is_valid(), "an object out of bounds")
            }
            RecordItem::Binding {
                parent,
                name,
                object,
            } => {
                let reserved =
                    *parent == FileId::ROOT && name.as_bytes() == RESERVED_NAME.as_bytes();
                check(
                    *object != FileId::ROOT && !reserved,
                    "a name that may not be bound",
                )
            }
            RecordItem::Blocks { first, hashes, .. } => {
                check(
                    !hashes.is_empty() && hashes.len() <= BLOCKS_ITEM_MAX,
                    "a list of hashes",
                )?;
                let end = first.checked_add(hashes.len() as u64);
                let bytes = end.and_then(|end| end.checked_mul(crate::limits::BLOCK_BYTES));
                check(
                    bytes.is_some_and(|bytes| i64::try_from(bytes).is_ok()),
                    "a block's number",
                )
            }
        }
    }
}

// Lists are decoded one element at a time up to their bound, so that a short frame that claims
// a long list of small things costs no memory.

pub(super) fn records<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<RecordItem>, D::Error> {
    from.deserialize_seq(Bounded::<RecordItem> {
        max: RECORDS_MAX,
        element: PhantomData,
    })
}

pub(super) fn hashes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<BlockHash>, D::Error> {
    from.deserialize_seq(Bounded::<BlockHash> {
        max: BLOCKS_ITEM_MAX,
        element: PhantomData,
    })
}

struct Bounded<T> {
    max: usize,
    element: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} elements", self.max)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::with_capacity(from.size_hint().unwrap_or(0).min(256));
        while let Some(element) = from.next_element()? {
            if list.len() == self.max {
                return Err(A::Error::custom("a list that is too long"));
            }
            list.push(element);
        }
        Ok(list)
    }
}
