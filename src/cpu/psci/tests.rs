use super::*;

/// The table of a guest with one CPU, the one that calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SingleCpu(Affinity);

impl CpuTable for SingleCpu {
    fn state(&self, cpu: Affinity) -> Option<CpuState> {
        if cpu == self.0 { Some(CpuState::On) } else { None }
    }
    fn is_entry_point(&self, _: Ipa) -> bool {
        // There is nobody to start: the state is asked first.
        false
    }
}

const SELF: u64 = 0x8000_0000;

fn call(arguments: [u64; 4]) -> Outcome {
    Call::decode(arguments).handle(&SingleCpu(Affinity::from_mpidr(SELF)))
}

fn error(number: i64) -> Outcome {
    Outcome::Return(number as u64)
}

/// CPU 0 on, 1 off, 0x100 pending, 0x1_0000_0000 off; RAM from 1 GiB on.
struct Four;

impl CpuTable for Four {
    fn state(&self, cpu: Affinity) -> Option<CpuState> {
        match cpu.bits() {
            0 => Some(CpuState::On),
            1 | 0x1_0000_0000 => Some(CpuState::Off),
            0x100 => Some(CpuState::OnPending),
            _ => None,
        }
    }
    fn is_entry_point(&self, entry: Ipa) -> bool {
        entry.raw() >= 0x4000_0000
    }
}

#[test]
fn versions_are_psci_1_1_and_smccc_1_1() {
    assert_eq!(call([0x8400_0000, 0, 0, 0]), Outcome::Return(0x1_0001));
    assert_eq!(call([0x8000_0000, 0, 0, 0]), Outcome::Return(0x1_0001));
}

#[test]
fn the_function_is_in_w0_whatever_stands_above() {
    assert_eq!(call([0xDEAD_BEEF_8400_0000, 0, 0, 0]), Outcome::Return(0x1_0001));
}

#[test]
fn features_tell_the_truth_about_every_function_number() {
    let psci32 = (0x8400_0000..0x8400_0020u64).chain(0x8400_0050..0x8400_0058);
    let psci64 = (0xC400_0000..0xC400_0020u64).chain(0xC400_0050..0xC400_0058);
    let other = [0x8000_0000, 0x8000_0001, 0x8000_0002, 0x8000_8000, 0x8000_7FFF, 0x8000_3FFF];
    let vendor = [0x8600_FF01, 0xC600_0000, 0, 4, 0x0400_0000, 0xFFFF_FFFF];
    for id in psci32.chain(psci64).chain(other).chain(vendor) {
        // Arguments that every implemented function takes as good or as merely invalid.
        let implemented = call([id, 0, 0, 0]) != error(-1);
        let announced = call([0x8400_000A, id, 0, 0]) == Outcome::Return(0)
            || call([0x8000_0001, id, 0, 0]) == Outcome::Return(0);
        // SMCCC_ARCH_FEATURES and PSCI_FEATURES of "nothing" are themselves NOT_SUPPORTED.
        let asks = id == 0x8400_000A || id == 0x8000_0001;
        assert_eq!(announced, implemented || asks, "{id:#x}");
    }
}

#[test]
fn smccc_is_found_through_psci_and_offers_no_workaround() {
    assert_eq!(call([0x8400_000A, 0x8000_0000, 0, 0]), Outcome::Return(0));
    assert_eq!(call([0x8400_000A, 0x8000_0001, 0, 0]), error(-1));
    for workaround in [0x8000_8000, 0x8000_7FFF, 0x8000_3FFF] {
        assert_eq!(call([0x8000_0001, workaround, 0, 0]), error(-1));
        assert_eq!(call([workaround, 0, 0, 0]), error(-1));
    }
}

#[test]
fn s25_cpu_on_never_claims_to_have_started_what_is_not_there() {
    for function in [0x8400_0003, 0xC400_0003] {
        assert_eq!(call([function, 0, 0x4000_0000, 7]), error(-4));
        assert_eq!(call([function, 1, 0x4000_0000, 7]), error(-2));
        // MPIDR's bit 31 is no affinity field.
        assert_eq!(call([function, 0x8000_0000, 0x4000_0000, 7]), error(-2));
    }
    assert_eq!(call([0xC400_0003, 1 << 40, 0x4000_0000, 0]), error(-2));
}

#[test]
fn cpu_on_starts_an_off_cpu_at_its_entry() {
    let on = |target, entry| Call::decode([0xC400_0003, target, entry, 7]).handle(&Four);
    let started = |cpu| Outcome::CpuOn {
        cpu: Affinity::from_mpidr(cpu),
        entry: Ipa::new(0x4000_1000),
        context: 7,
    };
    assert_eq!(on(1, 0x4000_1000), started(1));
    assert_eq!(on(0x1_0000_0000, 0x4000_1000), started(0x1_0000_0000));
    assert_eq!(on(0x100, 0x4000_1000), error(-5));
    assert_eq!(on(1, 0x1000), error(-9));
    assert_eq!(on(1, 0x4000_1002), error(-9));
}

#[test]
fn a_32_bit_call_has_32_bit_arguments() {
    let garbage = 0xFFFF_FFFF_0000_0000;
    let arguments = [0x8400_0003, garbage | 1, garbage | 0x4000_0000, garbage | 9];
    let started = Outcome::CpuOn { cpu: Affinity(1), entry: Ipa::new(0x4000_0000), context: 9 };
    assert_eq!(Call::decode(arguments).handle(&Four), started);
}

#[test]
fn affinity_info_reports_each_state_at_level_0_only() {
    let info = |target, level| Call::decode([0xC400_0004, target, level, 0]).handle(&Four);
    assert_eq!(info(0, 0), Outcome::Return(0));
    assert_eq!(info(1, 0), Outcome::Return(1));
    assert_eq!(info(0x100, 0), Outcome::Return(2));
    assert_eq!(info(2, 0), error(-2));
    assert_eq!(info(0, 1), error(-2));
}

#[test]
fn suspend_is_standby_at_the_cpus_own_level() {
    for function in [0x8400_0001, 0xC400_0001] {
        assert_eq!(call([function, 0, 0, 0]), Outcome::Suspend);
        assert_eq!(call([function, 0x0001_FFFF, 0, 0]), Outcome::Suspend);
        assert_eq!(call([function, 0x0100_0000, 0, 0]), error(-2));
        assert_eq!(call([function, 0x8000_0000, 0, 0]), error(-2));
    }
}

#[test]
fn system_calls_stop_and_restart() {
    assert_eq!(call([0x8400_0002, 0, 0, 0]), Outcome::CpuOff);
    assert_eq!(call([0x8400_0008, 0, 0, 0]), Outcome::SystemOff);
    assert_eq!(call([0x8400_0009, 0, 0, 0]), Outcome::SystemReset);
    for function in [0x8400_0012, 0xC400_0012] {
        assert_eq!(call([function, 0, 0x1234, 0]), Outcome::SystemReset);
        assert_eq!(call([function, 1, 0, 0]), error(-2));
        assert_eq!(call([function, 0x8000_0000, 0, 0]), error(-2));
    }
}

#[test]
fn migration_is_not_required() {
    assert_eq!(call([0x8400_0006, 0, 0, 0]), Outcome::Return(2));
    assert_eq!(call([0x8400_0005, 0, 0, 0]), error(-1));
    assert_eq!(call([0x8400_0007, 0, 0, 0]), error(-1));
}
