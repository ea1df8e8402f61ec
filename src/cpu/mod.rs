//! What an instruction set means to a hypervisor: syndromes, MMIO accesses, PSCI, system registers.
