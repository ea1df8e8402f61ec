//! EL2: the boot code leaves the map it promises.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(missing_docs, unsafe_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[macro_use]
mod el2_support;

#[cfg(target_os = "none")]
mod on_target {
    use super::el2_support::{self, check};
    use core::arch::asm;
    use core::ptr::NonNull;

    use aarch64_cpu::registers::{CurrentEL, HCR_EL2, Readable, SCTLR_EL2};
    use sparkler::arch::fault::{Probe, probe};
    use sparkler::arch::layout;
    use sparkler::memory::{Pa, SharedSlice};

    static CONSTANT: u32 = 7;
    static mut VARIABLE: u32 = 7;

    unsafe extern "C" {
        static __stack: u8;
        static __exception_stack: u8;
        static __text_end: u8;
        static __rodata_end: u8;
        static __data_end: u8;
    }

    /// The kind of fault by ESR_EL2.EC and the fault status without its level.
    fn fault(kind: Probe, address: usize) -> Option<(u64, u64)> {
        // SAFETY: no guest runs; the addresses used here are harmless to access.
        unsafe { probe(kind, address) }.err().map(|esr| (esr >> 26, esr & 0x3c))
    }

    const DATA_ABORT: u64 = 0x25;
    const INSTRUCTION_ABORT: u64 = 0x21;
    const TRANSLATION: u64 = 0x04;
    const PERMISSION: u64 = 0x0c;

    extern "C" fn harmless() {}

    fn runs_at_el2_with_mmu_and_caches_on() -> Result<(), &'static str> {
        check(CurrentEL.get() >> 2 == 2, "not at EL2")?;
        check(SCTLR_EL2.get() & 0x8_1005 == 0x8_1005, "SCTLR_EL2 lacks M, C, I or WXN")?;
        check(HCR_EL2.get() >> 34 & 1 == 0, "E2H is set")
    }

    fn text_is_executable_and_not_writable() -> Result<(), &'static str> {
        let text = harmless as extern "C" fn() as usize;
        check(fault(Probe::Call, text).is_none(), "text does not execute")?;
        check(fault(Probe::Write, text) == Some((DATA_ABORT, PERMISSION)), "text is writable")
    }

    fn constants_are_neither_writable_nor_executable() -> Result<(), &'static str> {
        let constant = (&raw const CONSTANT).addr();
        check(fault(Probe::Read, constant).is_none(), "rodata does not read")?;
        check(fault(Probe::Write, constant) == Some((DATA_ABORT, PERMISSION)), "writable")?;
        let exec = fault(Probe::Call, constant);
        check(exec == Some((INSTRUCTION_ABORT, PERMISSION)), "executable")
    }

    fn data_is_writable_and_not_executable() -> Result<(), &'static str> {
        let data = (&raw mut VARIABLE).addr();
        check(fault(Probe::Write, data).is_none(), "data is not writable")?;
        let exec = fault(Probe::Call, data);
        check(exec == Some((INSTRUCTION_ABORT, PERMISSION)), "executable")
    }

    fn the_pages_under_the_stacks_are_not_mapped() -> Result<(), &'static str> {
        for stack in [(&raw const __stack).addr(), (&raw const __exception_stack).addr()] {
            check(fault(Probe::Write, stack).is_none(), "the stack's last page is not writable")?;
            let guard = fault(Probe::Write, stack - 8);
            check(guard == Some((DATA_ABORT, TRANSLATION)), "the guard page is mapped")?;
        }
        Ok(())
    }

    fn what_is_not_mapped_faults() -> Result<(), &'static str> {
        for address in [0, 0x4000_0000, layout::LINEAR_BASE, layout::DEVICE_BASE + 0x0900_0000] {
            let read = fault(Probe::Read, address);
            check(read == Some((DATA_ABORT, TRANSLATION)), "an address out of nowhere reads")?;
        }
        Ok(())
    }

    fn the_sections_are_in_order() -> Result<(), &'static str> {
        let ends = [
            layout::IMAGE_BASE,
            (&raw const __text_end).addr(),
            (&raw const __rodata_end).addr(),
            (&raw const __data_end).addr(),
        ];
        check(ends.is_sorted() && ends.iter().all(|end| end % 4096 == 0), "sections overlap")
    }

    fn shared_memory_is_copied_right_at_every_phase_and_length() -> Result<(), &'static str> {
        const LEN: usize = 256;
        static mut FROM: [u64; LEN / 8] = [0; LEN / 8];
        static mut TO: [u64; LEN / 8] = [0; LEN / 8];
        let slice = |room: *mut [u64; LEN / 8]| {
            let base = NonNull::new(room.cast::<u8>()).ok_or("null")?;
            // SAFETY: a static that is used here only, and through these slices only.
            Ok::<_, &'static str>(unsafe { SharedSlice::new(base, Pa::new(0), LEN) })
        };
        let (from, to) = (slice(&raw mut FROM)?, slice(&raw mut TO)?);
        let numbers: [u8; LEN] = core::array::from_fn(|index| index as u8 & 0x7f);
        from.write_bytes(0, &numbers).ok_or("outside")?;
        for (source, target) in (0..17).flat_map(|a| (0..17).map(move |b| (a, b))) {
            for len in 0..LEN - 17 {
                to.fill(0, LEN, 0xff).ok_or("outside")?;
                let part = from.subslice(source, len).ok_or("outside")?;
                to.subslice(target, len).and_then(|to| to.copy_from(&part)).ok_or("refused")?;
                let mut got = [0; LEN];
                to.read_bytes(0, &mut got).ok_or("outside")?;
                let (before, rest) = got.split_at(target);
                let (copied, after) = rest.split_at(len);
                check(copied == &numbers[source..source + len], "other bytes")?;
                check(before.iter().chain(after).all(|byte| *byte == 0xff), "too many bytes")?;
            }
        }
        Ok(())
    }

    fn long_copies_are_right_and_leave_the_vector_registers_alone() -> Result<(), &'static str> {
        const LEN: usize = 2048;
        static mut FROM: [u8; LEN] = [0; LEN];
        static mut TO: [u8; LEN] = [0; LEN];
        let slice = |room: *mut [u8; LEN]| {
            let room = NonNull::new(room.cast::<u8>())?;
            // SAFETY: statics that are used here only, and through these slices only.
            Some(unsafe { SharedSlice::new(room, Pa::new(0), LEN) })
        };
        let from = slice(&raw mut FROM).ok_or("null")?;
        let to = slice(&raw mut TO).ok_or("null")?;
        for at in 0..LEN {
            from.store_u8(at, (at % 251) as u8).ok_or("outside")?;
        }
        let vectors: [u128; 8] = core::array::from_fn(|n| (n as u128 + 1) << 100 | n as u128);
        for len in [511, 512, 513, 639, 640, 641, 1500, 2000] {
            to.fill(0, LEN, 0xff).ok_or("outside")?;
            let part = from.subslice(len % 7, len).ok_or("outside")?;
            let room = to.subslice(5, len).ok_or("outside")?;
            // SAFETY: V0 to V7, in which nothing of Rust lives at EL2.
            unsafe {
                asm!(".arch_extension fp", "ldp q0, q1, [{0}]", "ldp q2, q3, [{0}, #32]",
                    "ldp q4, q5, [{0}, #64]", "ldp q6, q7, [{0}, #96]", in(reg) &vectors);
            }
            room.copy_from(&part).ok_or("refused")?;
            let mut kept = [0u128; 8];
            // SAFETY: as above.
            unsafe {
                asm!(".arch_extension fp", "stp q0, q1, [{0}]", "stp q2, q3, [{0}, #32]",
                    "stp q4, q5, [{0}, #64]", "stp q6, q7, [{0}, #96]", in(reg) &mut kept);
            }
            check(kept == vectors, "the vector registers have changed")?;
            for at in 0..LEN {
                let expected = match at.checked_sub(5).filter(|at| *at < len) {
                    Some(at) => ((at + len % 7) % 251) as u8,
                    None => 0xff,
                };
                check(to.load_u8(at) == Some(expected), "other bytes, or too many")?;
            }
        }
        Ok(())
    }

    el2_tests!(
        shared_memory_is_copied_right_at_every_phase_and_length,
        long_copies_are_right_and_leave_the_vector_registers_alone,
        runs_at_el2_with_mmu_and_caches_on,
        text_is_executable_and_not_writable,
        constants_are_neither_writable_nor_executable,
        data_is_writable_and_not_executable,
        the_pages_under_the_stacks_are_not_mapped,
        what_is_not_mapped_faults,
        the_sections_are_in_order,
    );
}
