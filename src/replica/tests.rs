//! The replica against a model, with crashes at every step; and against hostile primaries.

mod crash;
mod hostile;
mod link;
mod model;
mod world;
