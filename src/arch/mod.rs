//! EL2 only: system registers, MMU, exceptions, physical GIC, timer, firmware calls.
