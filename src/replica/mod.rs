//! The replica: the directory on the backup host, and the process that changes it.
//!
//! A session takes the entries of an epoch into a redo log (`stage`); with its commit on stable
//! storage the epoch is *durable*. A thread of its own (`engine`) turns the tree into that of the
//! next epochs (`delta` says what is to be done, `apply` does it), and the records with it; then
//! they are *applied*. What a crash leaves half done is done again from the log.
//!
//! It trusts nothing that arrives (invariant I10): names are names by their type, every path is
//! resolved one component at a time beneath the root without following links, a file is checked
//! before it is written in place, and an epoch that makes no sense is refused before the tree is
//! touched.
//!
//! Called by `cli` (`serve --stdio`, `recover`) and by `runtime` for a target on this machine.

mod adopt;
mod apply;
mod attributes;
mod content;
mod delta;
mod engine;
mod error;
mod gate;
mod give;
mod home;
mod link;
mod lock;
mod place;
mod redo;
mod session;
mod stage;
mod tree;

pub use error::ReplicaError;
pub use gate::{Recovered, recover};
pub use link::Stop;
pub use session::{ServeOptions, serve};

#[cfg(test)]
mod tests;
