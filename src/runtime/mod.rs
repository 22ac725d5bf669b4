//! The composition root: the only module that sees all.

pub mod ship;
