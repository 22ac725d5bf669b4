//! Reconcile over a real directory, journal, index and planner, without kernel and network: what
//! is shipped after a walk is the tree, whatever was done to it while nothing was mounted, and
//! whatever users do while the walk goes by.

mod actions;
mod edits;
mod primary;
mod replica;
