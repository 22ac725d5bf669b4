//! What several suites need.

pub mod sshd;
