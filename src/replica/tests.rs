//! The replica against a model, with crashes at every step; and against hostile primaries.

mod crash;
mod hostile;
mod model;
mod session;
mod stage;
mod world;
