//! The real mount: what programs see, what is captured, and how it ends. Needs `/dev/fuse`; where
//! that is missing each test says so and passes.

mod life;
mod locks;
mod operations;
mod stand;
