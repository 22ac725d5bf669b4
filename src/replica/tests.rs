//! The replica against a model, with crashes at every step; and against hostile primaries.

mod crash;
mod model;
mod world;
