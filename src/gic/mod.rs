//! The virtual GIC: one state machine, its register front ends and list-register scheduling.
