//! A real directory as the source, a replica in memory: what is planned is applied and compared.

mod delta;
mod edits;
mod model;
mod names;
mod world;
