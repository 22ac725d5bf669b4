//! What earlier versions wrote is read by this one, and written by it in the same way.
//!
//! `frames.hex` has a line for each kind of message: its name, how it is compared, the frame.
//! A format that changes on purpose gets a new version and new lines; old lines stay.
//! `MIRRORFS_BLESS=1` writes the file anew.

mod frames;
mod hot;
