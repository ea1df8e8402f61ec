//! Device trees: the board's is read, the guest's is written.

pub mod board;
mod check;
pub mod error;
pub mod guest;
pub mod modules;
mod node;
#[cfg(test)]
pub(crate) mod testing;
mod tree;
pub mod vms;
pub mod writer;

pub use board::{Board, Conduit, Cpu, CpuEnable, Gic, Timer, Uart, VirtioSlot};
pub use check::{HEADER_LEN, MAX_BLOB, blob_size};
pub use error::{BoardError, NodePath};
pub use guest::{GuestGic, GuestSlot, GuestTree};
pub use modules::{GuestImages, Module, ModuleKind};
pub use node::{Interrupt, StringList, Trigger};
pub use vms::{
    Below, BlockSource, DeviceKind, DeviceNode, DiskPart, DiskSlot, NetNode, NetTarget, OnCrash,
    PortList, PortTarget, VmNode, VsockNode,
};
pub use writer::{FdtWriter, WriteError};

/// Sorts a short list by insertion: the library's sorts are 6 KiB of code for lists of dozens.
fn sort_by_address<T>(list: &mut [T], address: impl Fn(&T) -> crate::memory::Pa) {
    for end in 1..list.len() {
        for at in (1..=end).rev() {
            let pair = (list.get(at - 1), list.get(at));
            let (Some(before), Some(after)) = pair else { break };
            if address(before) <= address(after) {
                break;
            }
            list.swap(at - 1, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Pa;

    proptest! {
        #[test]
        fn a_sorted_list_ascends_and_equal_ones_keep_their_order(
            keys in prop::collection::vec(0u64..20, 0..40),
        ) {
            let mut sorted: Vec<(u64, usize)> =
                keys.iter().enumerate().map(|(index, key)| (*key, index)).collect();
            let mut expected = sorted.clone();
            expected.sort_by_key(|(key, _)| *key);
            sort_by_address(&mut sorted, |(key, _)| Pa::new(*key));
            prop_assert_eq!(sorted, expected);
        }
    }
}
