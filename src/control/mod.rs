//! The control socket of a daemon, and what is said over it: requests, status and receipts as
//! data. One request a connection, one JSON value a line; while a request waits, the daemon
//! sends its status each second.
//!
//! The module knows nothing of what it controls: the runtime gives it a [`Service`]. The client
//! side is blocking and needs no runtime. The socket lies in the state directory with mode 0600,
//! so that only the user of the mirror (and root) can speak to it.

mod client;
mod failure;
mod message;
mod server;
mod socket;
mod status;
#[cfg(test)]
mod tests;

pub use client::{Client, ClientError};
pub use failure::{Exit, Failure};
pub use message::{Reply, Request};
pub use server::{Clients, Server, Service};
pub use socket::SOCKET_NAME;
pub use status::{Epochs, Link, Phase, Progress, Receipt, Status, rfc3339};
