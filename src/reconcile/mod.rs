//! Reconcile (invariant I5): make the known tree equal to the real one, by comparing names and
//! attributes with the index, and marking what differs in the open epoch.
//!
//! One engine for the first sync, an adopted copy, edits made while nothing was mounted, a crash,
//! a power failure, a directory that an operation discovered, and suspects that the replica
//! reports. It runs behind a usable mount: operations and walk may meet anywhere, since each name
//! is inspected under its own lock. What it needs is in [`tree::Tree`]; it changes nothing on
//! disk, and sees neither sender nor replica.
//!
//! A removed directory needs no walk: deletion is derived.

mod mirrored;
mod source;
pub mod tree;
mod walk;
mod walker;

#[cfg(test)]
mod tests;

pub use mirrored::Mirrored;
pub use source::{Allow, Remembered, SourceRefused, check_source};
pub use walker::{Failure, Mark, Phase, Progress, Start, Walker, WalkerError};
