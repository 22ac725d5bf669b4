//! mirrorfs: a mount that mirrors a project directory to a backup host, as changed blocks,
//! moments later. `docs/architecture.md` has the path of a change as a table; the modules below
//! stand in its order.

pub mod backing;
pub mod cli;
pub mod config;
pub mod control;
pub mod disk;
pub mod exclude;
pub mod journal;
pub mod limits;
pub mod model;
pub mod mount;
pub mod plan;
pub mod reconcile;
pub mod records;
pub mod replica;
pub mod runtime;
pub mod sender;
pub mod state;
pub mod transport;
pub mod wire;
