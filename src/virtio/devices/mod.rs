//! The device models.

pub mod block;
