//! A driver side, for tests.
