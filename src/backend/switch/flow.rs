//! Flows: what is to stay in order on one pair of queues (5.1.6.5.6).

use super::gather::Gather;
use crate::backend::net::Frame;

/// Ethernet with a tag, IPv6 and ports.
const READ: usize = 14 + 4 + 40 + 4;

/// A hash of the addresses and, for TCP and UDP without IP options, the ports of a frame: the same in
/// both directions. 0 for what is not IP.
pub(super) fn hash(frame: &Frame<'_, '_>) -> u32 {
    let mut bytes = [0; READ];
    let len = frame.len.min(READ);
    let read = bytes.get_mut(..len).and_then(|bytes| Gather::of(frame).read(bytes));
    if read.is_none() { 0 } else { of_header(&bytes).unwrap_or(0) }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

fn of_header(bytes: &[u8]) -> Option<u32> {
    let kind = |at: usize| bytes.get(at..)?.first_chunk::<2>().copied();
    let (network, kind) = match kind(12)? {
        [0x81, 0x00] => (18, kind(16)?),
        kind => (14, kind),
    };
    let (protocol, mut hash, transport) = match kind {
        [0x08, 0x00] => {
            let addresses = word(bytes, network + 12)? ^ word(bytes, network + 16)?;
            let options = *bytes.get(network)? != 0x45;
            // Only the first fragment has ports.
            let whole = word(bytes, network + 4)? & 0xFF3F_0000 == 0;
            let protocol = if options || !whole { 0 } else { *bytes.get(network + 9)? };
            (protocol, addresses, network + 20)
        }
        [0x86, 0xDD] => {
            let mut addresses = 0;
            for at in 0..8 {
                addresses ^= word(bytes, network + 8 + 4 * at)?;
            }
            (*bytes.get(network + 6)?, addresses, network + 40)
        }
        _ => return None,
    };
    if matches!(protocol, 6 | 17) {
        let ports = word(bytes, transport)?;
        hash ^= (ports ^ ports.rotate_left(16)).wrapping_mul(0x85EB_CA6B);
    }
    Some(hash.wrapping_mul(0x9E37_79B1) ^ hash.rotate_left(15).wrapping_mul(0xC2B2_AE35))
}
