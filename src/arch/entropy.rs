//! Entropy of the cores and of the board's firmware.

use smccc::{Call, Smc, arch, psci};

use super::{firmware, id_registers};
use crate::backend::clock::Ticks;
use crate::backend::entropy::{EntropySource, NoEntropy, Seed};

/// How often the core is asked for a word before it has failed.
const TRIES: u32 = 16;

/// RNDRRS (FEAT_RNG): the core's own, reseeded for each word. All cores are taken to have it if the one
/// that [`Rndr::find`] is called on has.
#[derive(Debug)]
pub struct Rndr(());

impl Rndr {
    /// It, if the core has it: ID_AA64ISAR0_EL1.RNDR.
    pub fn find() -> Option<Self> {
        (id_registers::read(6, 0)? >> 60 != 0).then_some(Self(()))
    }

    /// A word, if the core has one now.
    fn word() -> Option<u64> {
        let (value, failed): (u64, u64);
        // SAFETY: the core has the register; a read of it changes PSTATE.NZCV only, where Z says that
        // it has failed.
        unsafe {
            core::arch::asm!(
                "mrs {value}, S3_3_C2_C4_1",
                "cset {failed}, eq",
                value = out(reg) value,
                failed = out(reg) failed,
                options(nomem, nostack)
            );
        }
        (failed == 0).then_some(value)
    }
}

impl EntropySource for Rndr {
    fn fill(&mut self, seed: &mut Seed, _now: Ticks) -> Result<(), NoEntropy> {
        for place in seed.as_chunks_mut().0 {
            let word = (0..TRIES).find_map(|_| Self::word()).ok_or(NoEntropy::Failed)?;
            *place = word.to_le_bytes();
        }
        Ok(())
    }
}

/// TRNG_VERSION (Arm DEN0098, 2.1).
const TRNG_VERSION: u32 = 0x8400_0050;
/// TRNG_RND64 (2.5).
const TRNG_RND64: u32 = 0xc400_0053;
/// NO_ENTROPY: there is none now.
const TRNG_NO_ENTROPY: i64 = -3;
/// SMCCC_VERSION, as PSCI_FEATURES is asked for it.
const SMCCC_VERSION: u32 = 0x8000_0000;

/// The firmware's, by SMC.
#[derive(Debug)]
pub struct Firmware(());

impl Firmware {
    /// It, if the firmware has the interface. Firmware before SMCCC 1.1 is not asked: it need not know
    /// what to answer.
    pub fn find() -> Option<Self> {
        if !firmware::is_present() || psci::psci_features::<Smc>(SMCCC_VERSION).is_err() {
            return None;
        }
        let version = arch::version::<Smc>().ok()?;
        let knows = (version.major, version.minor) >= (1, 1);
        let trng = || Smc::call32(TRNG_VERSION, [0; 7])[0] as i32;
        (knows && trng() >= 0x1_0000).then_some(Self(()))
    }
}

impl EntropySource for Firmware {
    fn fill(&mut self, seed: &mut Seed, _now: Ticks) -> Result<(), NoEntropy> {
        for half in seed.as_chunks_mut::<16>().0 {
            let mut arguments = [0; 17];
            arguments[0] = 128;
            // 128 bits are in X2 and X3.
            let [status, _, high, low, ..] = Smc::call64(TRNG_RND64, arguments);
            match status as i64 {
                0 => *half = (u128::from(high) << 64 | u128::from(low)).to_le_bytes(),
                TRNG_NO_ENTROPY => return Err(NoEntropy::NotYet),
                _ => return Err(NoEntropy::Failed),
            }
        }
        Ok(())
    }
}
