//! Frames and messages.
mod message;
pub use message::{Hello, RecordItem, Refusal, ToPrimary, ToReplica, Welcome};
