//! EL2: the core translates by the stage-2 tables as they are meant.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(missing_docs, unsafe_code, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
#[macro_use]
mod el2_support;
#[cfg(target_os = "none")]
#[macro_use]
#[path = "el2_support/guest.rs"]
mod guest;

#[cfg(target_os = "none")]
mod on_target {
    use core::arch::asm;

    use aarch64_cpu::registers::{HCR_EL2, PAR_EL1, Readable, SCTLR_EL1, Writeable};
    use sparkler::arch::barrier;
    use sparkler::arch::stage2::{Registers, Tlbs, pa_range};
    use sparkler::memory::stage2::{
        Access, Attributes, Geometry, MemoryType, Stage2, Stage2Error, Vmid, pa_bits,
    };
    use sparkler::memory::{FramePool, Ipa, PAGE_SIZE, Pa};
    use sparkler::vm::exit::Next;
    use sparkler::vm::layout;

    use super::el2_support::{self, check, ram};
    use super::guest::{Guest, SPARE_PAGE, guest};

    core::arch::global_asm!(include_str!("guests/common.S"), include_str!("guests/stage2.S"));

    type Outcome = Result<(), &'static str>;

    const KIB_4: u64 = PAGE_SIZE;
    const MIB_2: u64 = 2 << 20;
    const GIB: u64 = 1 << 30;

    /// HCR_EL2: stage 2 on, stage 1 off and all its memory cacheable (DC), EL1 AArch64.
    const HCR: u64 = 1 | 1 << 12 | 1 << 31;

    /// What AT finds.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Found {
        /// A physical address, and the memory's attributes as in MAIR.
        At { pa: u64, attributes: u8 },
        /// A translation fault at a level of stage 2.
        Hole { level: u64 },
        /// A permission fault of stage 2.
        Forbidden,
        /// Another fault: PAR_EL1.
        Other(u64),
    }

    fn found() -> Found {
        barrier::isb();
        let par = PAR_EL1.get();
        let (status, stage2) = (par >> 1 & 0x3f, par >> 9 & 1 == 1);
        match (par & 1, status >> 2) {
            (0, _) => Found::At { pa: par & 0x0000_ffff_ffff_f000, attributes: (par >> 56) as u8 },
            (_, 0b0001) if stage2 => Found::Hole { level: status & 3 },
            (_, 0b0011) if stage2 => Found::Forbidden,
            _ => Found::Other(par),
        }
    }

    /// What a load of EL1 from `ipa` finds.
    fn read(ipa: u64) -> Found {
        // SAFETY: AT changes PAR_EL1 only.
        unsafe { asm!("at s12e1r, {}", in(reg) ipa, options(nostack, preserves_flags)) };
        found()
    }

    /// What a store of EL1 to `ipa` finds.
    fn write(ipa: u64) -> Found {
        // SAFETY: AT changes PAR_EL1 only.
        unsafe { asm!("at s12e1w, {}", in(reg) ipa, options(nostack, preserves_flags)) };
        found()
    }

    /// Whether EL1's store (or load) to `ipa` is forbidden. Where that cannot be asked, it is said to be: from 9.2
    /// on, QEMU ends with an assertion when AT meets a permission fault of stage 2. (A guest's own accesses, below,
    /// do not.)
    fn is_forbidden(access: fn(u64) -> Found, ipa: u64) -> bool {
        el2_support::qemu_version() >= 902 || access(ipa) == Found::Forbidden
    }

    const fn normal(pa: u64) -> Found {
        Found::At { pa, attributes: 0xff }
    }

    /// A tree under test, and the pool it is in.
    struct Space {
        pool: FramePool<'static>,
        tables: Stage2<'static>,
    }

    impl Space {
        fn new(ipa_bits: u8) -> Result<Self, &'static str> {
            let mut pool = ram::pool(0x8_0000);
            // So that a root of several tables is only aligned if someone sees to it.
            let _ = pool.alloc().map_err(|_| "no frame")?;
            let geometry = Geometry::new(ipa_bits, pa_range()).map_err(|_| "no geometry")?;
            let tables = Stage2::new(&mut pool, geometry, Vmid::new(7)).map_err(|_| "no root")?;
            HCR_EL2.set(HCR);
            SCTLR_EL1.set(0x30d0_0800);
            Registers::new(&tables).activate();
            Ok(Self { pool, tables })
        }

        fn map(&mut self, ipa: u64, pa: u64, len: u64, attributes: Attributes) -> Outcome {
            self.tables
                .map(&mut self.pool, &Tlbs, Ipa::new(ipa), Pa::new(pa), len, attributes)
                .map_err(|_| "cannot be mapped")
        }

        fn unmap(&mut self, ipa: u64, len: u64) -> Outcome {
            self.tables
                .unmap(&mut self.pool, &Tlbs, Ipa::new(ipa), len)
                .map_err(|_| "cannot be unmapped")
        }

        fn protect(&mut self, ipa: u64, len: u64, attributes: Attributes) -> Outcome {
            self.tables
                .protect(&mut self.pool, &Tlbs, Ipa::new(ipa), len, attributes)
                .map_err(|_| "cannot be protected")
        }

        fn block_size(&self, ipa: u64) -> Option<u64> {
            self.tables.lookup(&self.pool, Ipa::new(ipa)).map(|mapping| mapping.size)
        }
    }

    /// The greatest size of guest address space that all cores we know have.
    const IPA_BITS: u8 = layout::IPA_BITS;

    fn ram_is_read_and_written_at_another_address() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        space.map(0x4000_0000, 0x5400_0000, 3 * MIB_2, Attributes::RAM)?;
        for offset in (0..3 * MIB_2).step_by(KIB_4 as usize) {
            let there = normal(0x5400_0000 + offset);
            check(read(0x4000_0000 + offset) == there, "a load goes elsewhere")?;
            check(write(0x4000_0000 + offset) == there, "a store goes elsewhere")?;
        }
        Ok(())
    }

    fn what_is_not_mapped_is_a_hole() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        check(read(0) == Found::Hole { level: 1 }, "an empty tree translates")?;
        space.map(0x4000_0000, 0x5400_0000, KIB_4, Attributes::RAM)?;
        check(read(0x4000_1000) == Found::Hole { level: 3 }, "the page above")?;
        check(read(0x4020_0000) == Found::Hole { level: 2 }, "the block above")?;
        check(write(0x3fff_f000) == Found::Hole { level: 1 }, "the page below")?;
        check(write(0x8000_0000) == Found::Hole { level: 1 }, "the gigabyte above")?;
        let beyond = read(1 << IPA_BITS);
        check(!matches!(beyond, Found::At { .. }), "an address past the guest's space")
    }

    fn permissions_are_the_tables() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        let none = Attributes { access: Access::None, ..Attributes::RAM };
        space.map(0x4000_0000, 0x5400_0000, KIB_4, Attributes::READ_ONLY)?;
        space.map(0x4000_1000, 0x5400_1000, KIB_4, none)?;
        check(read(0x4000_0000) == normal(0x5400_0000), "a read-only page does not read")?;
        check(is_forbidden(write, 0x4000_0000), "a read-only page is written")?;
        check(is_forbidden(read, 0x4000_1000), "a page without access is read")?;
        check(is_forbidden(write, 0x4000_1000), "a page without access is written")
    }

    fn memory_types_are_the_tables() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        space.map(0x900_0000, 0x900_0000, KIB_4, Attributes::DEVICE)?;
        space.map(0x4000_0000, 0x5400_0000, KIB_4, Attributes::RAM)?;
        let device = Found::At { pa: 0x900_0000, attributes: 0x04 };
        check(read(0x900_0000) == device, "not Device-nGnRE")?;
        check(read(0x4000_0000) == normal(0x5400_0000), "not write-back")
    }

    fn blocks_of_every_size_translate_to_their_ends() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        // 1 GiB, 2 MiB and 4 KiB in one range: both addresses are 2 MiB and a page short of 1 GiB.
        let (ipa, pa) = (2 * GIB - MIB_2 - KIB_4, 5 * GIB - MIB_2 - KIB_4);
        let len = 2 * KIB_4 + 2 * MIB_2 + GIB;
        space.map(ipa, pa, len, Attributes::RAM)?;
        let blocks = [
            (0, KIB_4),
            (KIB_4, MIB_2),
            (KIB_4 + MIB_2, GIB),
            (KIB_4 + MIB_2 + GIB, MIB_2),
            (len - KIB_4, KIB_4),
        ];
        for (at, size) in blocks {
            check(space.block_size(ipa + at) == Some(size), "not the largest block")?;
            for offset in [at, (at + size / 2) & !0xfff, at + size - KIB_4] {
                check(write(ipa + offset) == normal(pa + offset), "inside a block")?;
            }
        }
        check(matches!(read(ipa - KIB_4), Found::Hole { .. }), "below")?;
        check(matches!(read(ipa + len), Found::Hole { .. }), "above")
    }

    fn every_address_space_translates_from_end_to_end() -> Outcome {
        for bits in Geometry::MIN_IPA_BITS..=pa_bits(pa_range()) {
            let mut space = Space::new(bits)?;
            // The last page of each of what may be 16 concatenated tables, and the first.
            let step = (1u64 << bits) / 16;
            for n in 0..16 {
                let (first, last) = (n * step, (n + 1) * step - KIB_4);
                space.map(first, 0x5400_0000 + 2 * n * KIB_4, KIB_4, Attributes::RAM)?;
                space.map(last, 0x5400_1000 + 2 * n * KIB_4, KIB_4, Attributes::RAM)?;
            }
            for n in 0..16 {
                let (first, last) = (n * step, (n + 1) * step - KIB_4);
                check(read(first) == normal(0x5400_0000 + 2 * n * KIB_4), "first page")?;
                check(read(last) == normal(0x5400_1000 + 2 * n * KIB_4), "last page")?;
                check(matches!(read(last - KIB_4), Found::Hole { .. }), "before the last page")?;
            }
        }
        Ok(())
    }

    fn forty_bits_take_two_concatenated_tables() -> Outcome {
        let mut space = Space::new(40)?;
        let geometry = space.tables.geometry();
        check((geometry.start_level(), geometry.root_tables()) == (1, 2), "another root")?;
        space.map(1 << 39, 0x5400_0000, KIB_4, Attributes::RAM)?;
        check(read(1 << 39) == normal(0x5400_0000), "the second table is not walked")?;
        check(matches!(read(0), Found::Hole { .. }), "the first table is not apart")
    }

    fn a_split_block_translates_as_before_but_for_what_was_changed() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        let (ipa, pa) = (2 * GIB, 5 * GIB);
        space.map(ipa, pa, GIB, Attributes::RAM)?;
        let page = 0x1234_5000;
        space.protect(ipa + page, KIB_4, Attributes::READ_ONLY)?;
        check(space.block_size(ipa + page) == Some(KIB_4), "not a page of its own")?;
        check(is_forbidden(write, ipa + page), "the page is writable")?;
        check(read(ipa + page) == normal(pa + page), "the page has moved")?;
        let neighbours = [page - KIB_4, page + KIB_4, page & !(MIB_2 - 1)];
        for offset in neighbours.into_iter().chain((0..GIB).step_by(MIB_2 as usize)) {
            check(write(ipa + offset) == normal(pa + offset), "another page has changed")?;
        }
        Ok(())
    }

    fn an_unmapped_page_is_a_hole_in_its_block() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        let frames = space.pool.free_frames();
        space.map(0x4000_0000, 0x5400_0000, 2 * MIB_2, Attributes::RAM)?;
        space.unmap(0x4000_3000, KIB_4)?;
        check(read(0x4000_3000) == Found::Hole { level: 3 }, "it is still there")?;
        check(read(0x4000_2000) == normal(0x5400_2000), "the page before it is gone")?;
        check(read(0x4000_4000) == normal(0x5400_4000), "the page after it is gone")?;
        check(read(0x4020_0000) == normal(0x5420_0000), "the next block is gone")?;
        space.unmap(0x4000_0000, GIB)?;
        check(read(0x4000_2000) == Found::Hole { level: 1 }, "tables are left")?;
        check(space.pool.free_frames() == frames, "frames are lost")
    }

    fn the_core_and_lookup_agree_whatever_was_done() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        let mut random = 0x2545_f491_4f6c_dd1du64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..300 {
            // Three blocks of 2 MiB at the end of a gigabyte, and three at the start of the next.
            let ipa = GIB - 3 * MIB_2 + next(6 * 512) * KIB_4;
            let len = [KIB_4, 16 * KIB_4, MIB_2, 3 * MIB_2][next(4) as usize];
            let pa = 0x5400_0000 + ipa % MIB_2 + next(8) * MIB_2;
            let kinds = [Attributes::RAM, Attributes::READ_ONLY, Attributes::DEVICE];
            let attributes = kinds[next(3) as usize];
            // Most fail, because part of the range is mapped, or not; then nothing must change.
            let _ = match next(4) {
                0 | 1 => space.map(ipa, pa, len, attributes),
                2 => space.unmap(ipa, len),
                _ => space.protect(ipa, len, attributes),
            };
            for _ in 0..64 {
                let ipa = GIB - 3 * MIB_2 + next(6 * 512) * KIB_4;
                let mapping = space.tables.lookup(&space.pool, Ipa::new(ipa));
                let pa = mapping.and_then(|mapping| mapping.translate(Ipa::new(ipa)));
                let (loads, stores) = match (mapping, pa) {
                    (Some(mapping), Some(pa)) => {
                        let device = mapping.attributes.memory == MemoryType::Device;
                        let attributes = if device { 0x04 } else { 0xff };
                        let found = Found::At { pa: pa.raw(), attributes };
                        let read_only = mapping.attributes.access == Access::ReadOnly;
                        (found, if read_only { Found::Forbidden } else { found })
                    }
                    _ => match read(ipa) {
                        hole @ Found::Hole { .. } => (hole, hole),
                        _ => return Err("the core translates what is not mapped"),
                    },
                };
                check(read(ipa) == loads, "the core loads from elsewhere")?;
                let stored = match stores {
                    Found::Forbidden => is_forbidden(write, ipa),
                    stores => write(ipa) == stores,
                };
                check(stored, "the core stores to elsewhere")?;
            }
        }
        Ok(())
    }

    fn a_destroyed_tree_gives_its_frames_back() -> Outcome {
        let mut space = Space::new(IPA_BITS)?;
        let root = space.tables.geometry().root_tables();
        let frames = space.pool.free_frames() + root;
        space.map(0x4000_0000, 0x5400_0000, 5 * KIB_4, Attributes::RAM)?;
        let destroyed: Result<(), Stage2Error> = space.tables.destroy(&mut space.pool, &Tlbs);
        check(destroyed.is_ok() && space.pool.free_frames() == frames, "frames are lost")?;
        check(matches!(read(0x4000_0000), Found::Hole { .. }), "it still translates")
    }

    // From here on a guest does the accesses: unlike AT, they use what the TLBs have cached.

    const PAGE_OFFSET: usize = (SPARE_PAGE.raw() - layout::RAM.raw()) as usize;
    const EXTERNAL_ABORT: u64 = 0x9600_0010;

    fn power_offs(end: Next) -> Outcome {
        check(end == Next::PowerOff, "the payload did not power off")
    }

    /// Changes the guest's stage 2.
    fn change(
        guest: &mut Guest,
        change: impl FnOnce(&mut Stage2<'static>, &mut FramePool<'static>) -> Result<(), Stage2Error>,
    ) -> Outcome {
        change(&mut guest.tables, &mut guest.pool).map_err(|_| "stage 2 cannot be changed")
    }

    /// Makes the spare page of the guest what it was.
    fn restore(guest: &mut Guest) -> Outcome {
        let pa = Pa::new(guest.memory().pa().raw() + PAGE_OFFSET as u64);
        change(guest, |tables, pool| {
            tables.unmap(pool, &Tlbs, SPARE_PAGE, KIB_4)?;
            tables.map(pool, &Tlbs, SPARE_PAGE, pa, KIB_4, Attributes::RAM)
        })
    }

    fn a_guest_loses_an_unmapped_page_at_once() -> Outcome {
        let mut guest = guest();
        power_offs(guest.run(label!(load_page)))?;
        check([0, 1, 2].map(|n| guest.result(n)) == [0; 3], "RAM was not zero")?;
        guest.memory().store_u64(PAGE_OFFSET - 8, 7);
        guest.memory().store_u64(PAGE_OFFSET + 4096, 8);
        change(&mut guest, |tables, pool| tables.unmap(pool, &Tlbs, SPARE_PAGE, KIB_4))?;
        power_offs(guest.resume())?;
        let exceptions = guest.exceptions();
        check(exceptions.len() == 1, "the page is still there")?;
        check(exceptions[0].esr == EXTERNAL_ABORT, "another exception")?;
        check(exceptions[0].far == SPARE_PAGE.raw(), "at another address")?;
        check(guest.result(3) == !0, "the page was loaded from")?;
        check(guest.result(4) == 7 && guest.result(5) == 8, "its neighbours are gone")?;
        restore(&mut guest)
    }

    fn a_guest_loses_several_unmapped_pages_at_once() -> Outcome {
        let mut guest = guest();
        power_offs(guest.run(label!(load_page)))?;
        change(&mut guest, |tables, pool| tables.unmap(pool, &Tlbs, SPARE_PAGE, 2 * KIB_4))?;
        power_offs(guest.resume())?;
        let lost = guest.exceptions().len();
        let pa = Pa::new(guest.memory().pa().raw() + PAGE_OFFSET as u64);
        change(&mut guest, |tables, pool| {
            tables.map(pool, &Tlbs, SPARE_PAGE, pa, 2 * KIB_4, Attributes::RAM)
        })?;
        check(lost == 2, "a page is still there")
    }

    fn a_guest_sees_what_a_page_was_mapped_to_last() -> Outcome {
        let mut guest = guest();
        let other = ram::ram(KIB_4, KIB_4);
        other.store_u64(0, 0x0123_4567_89ab_cdef);
        power_offs(guest.run(label!(load_page)))?;
        change(&mut guest, |tables, pool| {
            tables.unmap(pool, &Tlbs, SPARE_PAGE, KIB_4)?;
            tables.map(pool, &Tlbs, SPARE_PAGE, other.pa(), KIB_4, Attributes::RAM)
        })?;
        power_offs(guest.resume())?;
        let value = guest.result(3);
        restore(&mut guest)?;
        check(value == 0x0123_4567_89ab_cdef, "it sees the page that was there before")
    }

    fn a_guest_cannot_store_to_a_page_that_became_read_only() -> Outcome {
        let mut guest = guest();
        power_offs(guest.run(label!(store_page)))?;
        check(guest.memory().load_u64(PAGE_OFFSET) == Some(1), "the first store is lost")?;
        change(&mut guest, |tables, pool| {
            tables.protect(pool, &Tlbs, SPARE_PAGE, KIB_4, Attributes::READ_ONLY)
        })?;
        power_offs(guest.resume())?;
        let stored = guest.memory().load_u64(PAGE_OFFSET);
        let exceptions = guest.exceptions();
        restore(&mut guest)?;
        check(stored == Some(1), "it was stored to")?;
        check(exceptions.len() == 1, "no exception")?;
        check(exceptions[0].esr == EXTERNAL_ABORT | 1 << 6, "another exception")?;
        power_offs(guest.resume())?;
        check(guest.memory().load_u64(PAGE_OFFSET) == Some(3), "it stays read-only")
    }

    fn a_guest_cannot_execute_a_page_that_became_data() -> Outcome {
        let mut guest = guest();
        power_offs(guest.run(label!(call_page)))?;
        check(guest.result(0) == 0, "the page does not execute at first")?;
        let data = Attributes { executable: false, ..Attributes::RAM };
        change(&mut guest, |tables, pool| tables.protect(pool, &Tlbs, SPARE_PAGE, KIB_4, data))?;
        power_offs(guest.resume())?;
        let exceptions = guest.exceptions();
        restore(&mut guest)?;
        check(guest.result(1) == 1 && exceptions.len() == 1, "it executes")?;
        check(exceptions[0].esr == 0x8600_0010, "another exception")
    }

    el2_tests!(
        ram_is_read_and_written_at_another_address,
        what_is_not_mapped_is_a_hole,
        permissions_are_the_tables,
        memory_types_are_the_tables,
        blocks_of_every_size_translate_to_their_ends,
        every_address_space_translates_from_end_to_end,
        forty_bits_take_two_concatenated_tables,
        a_split_block_translates_as_before_but_for_what_was_changed,
        an_unmapped_page_is_a_hole_in_its_block,
        the_core_and_lookup_agree_whatever_was_done,
        a_destroyed_tree_gives_its_frames_back,
        a_guest_loses_an_unmapped_page_at_once,
        a_guest_loses_several_unmapped_pages_at_once,
        a_guest_sees_what_a_page_was_mapped_to_last,
        a_guest_cannot_store_to_a_page_that_became_read_only,
        a_guest_cannot_execute_a_page_that_became_data,
    );
}
