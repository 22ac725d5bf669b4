//! On a real directory, without a kernel: against a plain directory, and against a replica that
//! is made of nothing but what the journal says.

mod borders;
mod names;
mod random;
mod replica;
mod rig;
mod users;
