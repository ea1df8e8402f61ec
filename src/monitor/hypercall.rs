//! The monitor's commands by hypercall, for a guest that is the operator: HVC or SMC in the range of
//! vendor-specific hypervisor services (Arm DEN 0028, SMCCC, 6.2 and 7).
//!
//! | function | identifier | arguments | result |
//! |---|---|---|---|
//! | CALL_UID | `0x8600_FF01` | | w0 to w3: [`UID`] |
//! | REVISION | `0x8600_FF03` | | w0, w1: major and minor revision |
//! | MONITOR_COMMAND | `0xC600_0001` | x1, x2: IPA and length of the command; x3, x4: IPA and length of room for the answer | x0: bytes of the answer, or an error |
//!
//! The command is read once; the answer is cut where the room ends. Whatever the command does wrong
//! is in the answer's text. See `docs/monitor.md`.

use core::fmt::{self, Write};

use super::{Operator, run};
use crate::console::COMMAND_LEN;
use crate::memory::{GuestMemory, Ipa, SharedSlice};

/// Longest answer, in bytes.
pub const ANSWER_LEN: usize = 4096;

/// Says that the hypervisor is sparkler: a UUID, as CALL_UID returns it in w0 to w3
/// (4f1c6d2e-93b0-5a47-8e21-7370726b6c72).
pub const UID: [u32; 4] = [0x2E6D_1C4F, 0x475A_B093, 0x7073_218E, 0x726C_6B72];

/// Revision of these calls: major, minor.
const REVISION: [u64; 2] = [1, 0];

const CALL_UID_ID: u32 = 0x8600_FF01;
const REVISION_ID: u32 = 0x8600_FF03;
const MONITOR_COMMAND_ID: u32 = 0xC600_0001;
/// The service of a function identifier: call type, convention, owner.
const SERVICE: u32 = 0xBF00_0000;
/// Fast calls to the vendor-specific hypervisor service, in either convention.
const VENDOR_HYPERVISOR: u32 = 0x8600_0000;

/// Why a call has no result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i8)]
pub enum CallError {
    /// No such function.
    NotSupported = -1,
    /// A length is zero or too large.
    InvalidParameters = -2,
    /// The VM is not an operator.
    Denied = -3,
    /// An address is not the guest's RAM, or not for the whole length.
    InvalidAddress = -9,
}

impl CallError {
    /// The value for x0: the sign reaches through all 64 bits.
    pub const fn value(self) -> u64 {
        self as i8 as i64 as u64
    }
}

/// A call, decoded from x0 to x4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// Who is the hypervisor?
    Uid,
    /// Which revision of these calls?
    Revision,
    /// Carry out a command.
    Command(CommandCall),
    /// A function of this service that is not there.
    Unknown,
}

/// The arguments of MONITOR_COMMAND, as alleged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandCall {
    command: Ipa,
    command_len: u64,
    answer: Ipa,
    answer_len: u64,
}

/// Whether a call with these x0 to x3 is for this service; not for calls with an immediate other than
/// zero.
#[inline(always)]
pub const fn is_for_us([x0, ..]: [u64; 4]) -> bool {
    x0 as u32 & SERVICE == VENDOR_HYPERVISOR
}

/// What goes into registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// x0 to x3.
    Four([u64; 4]),
    /// x0 and x1.
    Two([u64; 2]),
    /// x0.
    One(u64),
}

impl Call {
    /// The call in x0 to x4, `None` if it is for another service. Not for calls with an immediate
    /// other than zero.
    #[inline]
    pub const fn decode([x0, x1, x2, x3, x4]: [u64; 5]) -> Option<Self> {
        if !is_for_us([x0, x1, x2, x3]) {
            return None;
        }
        Some(match x0 as u32 {
            CALL_UID_ID => Self::Uid,
            REVISION_ID => Self::Revision,
            MONITOR_COMMAND_ID => Self::Command(CommandCall {
                command: Ipa::new(x1),
                command_len: x2,
                answer: Ipa::new(x3),
                answer_len: x4,
            }),
            _ => Self::Unknown,
        })
    }

    /// Carries the call out for a guest with this memory. `operator` is there if the guest is
    /// allowed to be one.
    pub fn handle(self, memory: &GuestMemory<'_>, operator: Option<&mut dyn Operator>) -> Outcome {
        let result = match self {
            Self::Uid => return Outcome::Four(UID.map(u64::from)),
            Self::Revision => return Outcome::Two(REVISION),
            Self::Unknown => Err(CallError::NotSupported),
            Self::Command(call) => match operator {
                None => Err(CallError::Denied),
                Some(operator) => call.run(memory, operator),
            },
        };
        Outcome::One(result.unwrap_or_else(CallError::value))
    }
}

impl CommandCall {
    /// The bytes of the answer.
    fn run(self, memory: &GuestMemory<'_>, operator: &mut dyn Operator) -> Result<u64, CallError> {
        let len = |len: u64, max: usize| match usize::try_from(len) {
            Ok(len @ 1..) if len <= max => Ok(len),
            _ => Err(CallError::InvalidParameters),
        };
        let command_len = len(self.command_len, COMMAND_LEN)?;
        let answer_len = len(self.answer_len, ANSWER_LEN)?;
        let slice = |ipa, len| memory.slice(ipa, len).map_err(|_| CallError::InvalidAddress);
        let command = slice(self.command, command_len)?;
        let room = slice(self.answer, answer_len)?;
        let mut text = [0; COMMAND_LEN];
        let text = text.get_mut(..command_len).ok_or(CallError::InvalidParameters)?;
        command.read_bytes(0, text).ok_or(CallError::InvalidAddress)?;
        let mut answer = Answer { room, written: 0 };
        // An answer that is cut is an answer.
        let _ = run(text, operator, &mut answer, answer_len);
        Ok(answer.written as u64)
    }
}

/// Room for an answer in the guest's memory.
struct Answer<'m> {
    room: SharedSlice<'m>,
    written: usize,
}

impl Write for Answer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let left = self.room.len() - self.written;
        let fits = text.as_bytes().get(..left).unwrap_or(text.as_bytes());
        self.room.write_bytes(self.written, fits).ok_or(fmt::Error)?;
        self.written += fits.len();
        if fits.len() < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::Fake;
    use super::*;
    use crate::memory::testing::ram;

    const RAM: u64 = 0x4000_0000;
    const LEN: usize = 0x4000;
    const COMMAND: u64 = 0xC600_0001;
    const NOBODY: u64 = u64::MAX;

    /// A guest's memory with `command` at its start.
    fn memory(command: &[u8]) -> GuestMemory<'static> {
        let mut memory = GuestMemory::new();
        let region = ram(0x8_0000_0000, LEN);
        region.write_bytes(0, command).unwrap();
        assert!(memory.add(Ipa::new(RAM), region).is_ok());
        memory
    }

    fn call(memory: &GuestMemory<'_>, fake: &mut Fake, arguments: [u64; 5]) -> Outcome {
        Call::decode(arguments).unwrap().handle(memory, Some(fake))
    }

    fn error(error: CallError) -> Outcome {
        Outcome::One(error.value())
    }

    #[test]
    fn it_says_who_it_is_to_everybody() {
        let memory = memory(b"");
        let answer = |id| Call::decode([id, 0, 0, 0, 0]).unwrap().handle(&memory, None);
        assert_eq!(answer(0x8600_FF01), Outcome::Four(UID.map(u64::from)));
        assert_eq!(answer(0x8600_FF03), Outcome::Two([1, 0]));
        // Bits above the identifier are not part of it.
        assert_eq!(answer(0xFFFF_FFFF_8600_FF03), Outcome::Two([1, 0]));
        let bytes: Vec<u8> = UID.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(bytes, *b"\x4f\x1c\x6d\x2e\x93\xb0\x5a\x47\x8e\x21sprklr");
    }

    #[test]
    fn calls_of_other_services_are_not_taken() {
        for id in [0x8400_0000, 0xC400_0003, 0x8000_0000, 0x0600_0000, 0x8500_0000, 0x8700_FF01] {
            assert_eq!(Call::decode([id, 0, 0, 0, 0]), None, "{id:#x}");
        }
        for id in [0x8600_0001, 0xC600_0000, 0xC600_FF01, 0x8600_FF00, 0xC600_0002] {
            let outcome = Call::decode([id, 0, 0, 0, 0]).unwrap().handle(&memory(b""), None);
            assert_eq!(outcome, error(CallError::NotSupported), "{id:#x}");
        }
    }

    #[test]
    fn a_command_is_answered_in_the_guests_memory() {
        let memory = memory(b"memory");
        let mut fake = Fake::default();
        let Outcome::One(len) = call(&memory, &mut fake, [COMMAND, RAM, 6, RAM + 0x1000, 4096])
        else {
            panic!("no length")
        };
        let mut text = vec![0; len as usize];
        memory.slice(Ipa::new(RAM + 0x1000), len as usize).unwrap().read_bytes(0, &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("total "), "{text}");
        assert!(text.ends_with('\n'), "{text}");
    }

    #[test]
    fn an_answer_is_cut_where_its_room_ends() {
        let memory = memory(b"help");
        let after = memory.slice(Ipa::new(RAM + 0x1000 + 10), 1).unwrap();
        after.store_u8(0, 0x55);
        let outcome = call(&memory, &mut Fake::default(), [COMMAND, RAM, 4, RAM + 0x1000, 10]);
        assert_eq!(outcome, Outcome::One(10));
        assert_eq!(after.load_u8(0), Some(0x55));
    }

    #[test]
    fn a_vm_that_is_no_operator_is_denied() {
        let call = Call::decode([COMMAND, RAM, 4, RAM, 64]).unwrap();
        assert_eq!(call.handle(&memory(b"help"), None), error(CallError::Denied));
    }

    #[test]
    fn bad_lengths_and_addresses_are_refused_and_nothing_is_done() {
        let memory = memory(b"vm a stop");
        let end = RAM + LEN as u64;
        let mut fake = Fake::default();
        for [command_len, answer_len] in [
            [0, 64],
            [129, 64],
            [u64::MAX, 64],
            [9 | 1 << 32, 64],
            [9, 0],
            [9, 4097],
            [9, u64::MAX],
        ] {
            let outcome = call(&memory, &mut fake, [COMMAND, RAM, command_len, RAM, answer_len]);
            assert_eq!(outcome, error(CallError::InvalidParameters), "{command_len} {answer_len}");
        }
        for [command, answer] in [
            [0, RAM],
            [RAM - 1, RAM],
            [end - 8, RAM],
            [NOBODY - 3, RAM],
            [RAM, 0],
            [RAM, end - 63],
            [RAM, NOBODY - 63],
            [RAM, 0x0900_0000],
        ] {
            let outcome = call(&memory, &mut fake, [COMMAND, command, 9, answer, 64]);
            assert_eq!(outcome, error(CallError::InvalidAddress), "{command:#x} {answer:#x}");
        }
        assert!(fake.done.is_empty());
        let outcome = call(&memory, &mut fake, [COMMAND, RAM, 9, end - 64, 64]);
        assert_eq!(outcome, Outcome::One(0));
        assert_eq!(fake.done, ["a Stop"]);
    }

    proptest! {
        #[test]
        fn any_call_is_answered_within_its_room(
            command in prop::collection::vec(any::<u8>(), 0..200),
            at in prop_oneof![RAM - 4..RAM + 8, any::<u64>()],
            command_len in prop_oneof![0..140u64, any::<u64>()],
            answer in prop_oneof![RAM..RAM + LEN as u64, any::<u64>()],
            answer_len in prop_oneof![0..5000u64, any::<u64>()],
        ) {
            let memory = memory(&command);
            match call(&memory, &mut Fake::default(), [COMMAND, at, command_len, answer, answer_len]) {
                Outcome::One(value) if (value as i64) < 0 => prop_assert!(value as i64 >= -9),
                Outcome::One(len) => prop_assert!(len <= answer_len && answer_len <= 4096),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
