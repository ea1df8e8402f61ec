//! Device trees: the board's is read, the guest's is written.
