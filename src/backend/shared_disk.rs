//! A disk that several devices use, each from the core of its own machine.
//!
//! Each has a [`Client`], which is a disk to it. Requests go to the disk under names of the disk's
//! own. Whoever polls collects what has finished, whosesoever it is: what is another's is put into that
//! client's mailbox, and that client's core is woken. So a completion is found by the first core that
//! looks, and no core has to be the one.
//!
//! - **Fair**: each client can always have its share of the disk's requests in flight. What of the
//!   others' shares is not in use it can have only as far as these can still have theirs.
//! - **FLUSH** is the whole disk's: it covers every write that has completed, and thus every one
//!   that its client has heard of.
//! - **Locks**: the disk's is taken under that of a device's slot; under it only those of wakers, and of
//!   the log. It is held while a request is handed over or completions are collected, never
//!   while the disk is waited for.

use super::block::{BlockBackend, BlockInfo, BlockRequest, BlockStatus, SubmitError, Tag};
use super::clock::Ticks;
use super::wake::{Collect, Waker};
use crate::sync::{Mutex, MutexGuard};

/// Clients that a disk can have.
pub const MAX_CLIENTS: usize = 16;

/// Requests that can be in flight, and requests that a client can have in flight or in its mailbox.
const SLOTS: usize = u64::BITS as usize;

/// Whose a request at the disk is, and what they call it.
#[derive(Clone, Copy)]
struct Owner {
    client: u8,
    tag: Tag,
}

/// What is known of a client.
struct Account<'m> {
    /// Who is to be told when something has been put into the mailbox.
    waker: Waker<'m>,
    /// Its requests at the disk.
    at_disk: u16,
    /// The mailbox: what has finished and the client does not know of yet. It has room for all
    /// that the client can have in flight.
    finished: heapless::Deque<(Tag, BlockStatus), SLOTS>,
}

struct State<'m, D> {
    disk: D,
    /// By slot, which is the name that the disk knows a request by.
    owners: [Owner; SLOTS],
    /// A bit for each slot that is free.
    free: u64,
    clients: heapless::Vec<Account<'m>, MAX_CLIENTS>,
    /// Requests that each client can always have at the disk.
    share: u16,
    depth: u16,
}

/// A disk for several.
pub struct SharedDisk<'m, D> {
    state: Mutex<State<'m, D>>,
}

impl<'m, D: BlockBackend<'m>> SharedDisk<'m, D> {
    /// The disk `disk`, which must have nothing in flight, without clients.
    pub fn new(disk: D) -> Self {
        let depth = disk.info().depth.clamp(1, SLOTS as u16);
        let state = State {
            disk,
            owners: [Owner { client: 0, tag: Tag(0) }; SLOTS],
            free: u64::MAX >> (SLOTS as u16 - depth),
            clients: heapless::Vec::new(),
            share: depth,
            depth,
        };
        Self { state: Mutex::new(state) }
    }

    /// Adds a client. `waker` tells it that something of its has finished. `None` if there are
    /// [`MAX_CLIENTS`].
    ///
    /// To be called before any client is used: the shares of all become smaller.
    pub fn client<'d>(&'d self, waker: Waker<'m>) -> Option<Client<'d, 'm, D>> {
        let mut state = self.state.lock();
        let index = state.clients.len() as u8;
        let account = Account { waker, at_disk: 0, finished: heapless::Deque::new() };
        state.clients.push(account).ok()?;
        // A disk that has fewer slots than clients serves who comes first.
        state.share = state.depth.checked_div(state.clients.len() as u16).unwrap_or(1).max(1);
        Some(Client { disk: self, index })
    }
}

impl<'m, D: BlockBackend<'m>> State<'m, D> {
    /// Whether `client` can have another request at the disk.
    fn has_room_for(&self, client: u8) -> bool {
        let free = self.free.count_ones() as u16;
        let mut reserved = 0;
        for (index, account) in self.clients.iter().enumerate() {
            if index != usize::from(client) {
                reserved += self.share.saturating_sub(account.at_disk);
            } else if account.at_disk + account.finished.len() as u16 >= SLOTS as u16 {
                return false;
            } else if account.at_disk < self.share {
                return free != 0;
            }
        }
        free > reserved
    }

    /// The next request that the disk has finished: whose, their name for it, and how it ended.
    #[inline]
    fn next_finished(&mut self, now: Ticks) -> Option<(u8, Tag, BlockStatus)> {
        let (slot, status) = self.disk.poll(now)?;
        let owner = *self.owners.get(usize::from(slot.0))?;
        self.free |= 1 << slot.0;
        if let Some(account) = self.clients.get_mut(usize::from(owner.client)) {
            account.at_disk = account.at_disk.saturating_sub(1);
        }
        Some((owner.client, owner.tag, status))
    }

    /// Puts what has finished into a mailbox; the first in it wakes the client.
    fn post(&mut self, client: u8, tag: Tag, status: BlockStatus, here: Option<u8>) {
        let Some(account) = self.clients.get_mut(usize::from(client)) else { return };
        let was_empty = account.finished.is_empty();
        // There is room: see `has_room_for`.
        let _ = account.finished.push_back((tag, status));
        if was_empty && here != Some(account.waker.core()) {
            account.waker.wake();
        }
    }
}

impl<'m, D: BlockBackend<'m>> Collect for SharedDisk<'m, D> {
    fn collect(&self, now: Ticks, here: u8) -> bool {
        let mut state = self.state.lock();
        let mut any = false;
        for _ in 0..SLOTS {
            let Some((client, tag, status)) = state.next_finished(now) else { break };
            state.post(client, tag, status, Some(here));
            any = true;
        }
        any
    }
}

/// One of those that share a disk: a disk to it. It can do what the disk can.
pub struct Client<'d, 'm, D> {
    disk: &'d SharedDisk<'m, D>,
    index: u8,
}

impl<'d, 'm, D> Client<'d, 'm, D> {
    fn lock(&self) -> MutexGuard<'d, State<'m, D>> {
        self.disk.state.lock()
    }
}

impl<'m, D: BlockBackend<'m>> BlockBackend<'m> for Client<'_, 'm, D> {
    fn info(&self) -> BlockInfo {
        let state = self.lock();
        BlockInfo { depth: state.depth, ..state.disk.info() }
    }

    fn submit(&mut self, request: BlockRequest<'_, 'm>, now: Ticks) -> Result<(), SubmitError> {
        let mut state = self.lock();
        let state = &mut *state;
        if !state.has_room_for(self.index) {
            return Err(SubmitError::Busy);
        }
        let slot = state.free.trailing_zeros() as u16;
        let (Some(owner), Some(account)) = (
            state.owners.get_mut(usize::from(slot)),
            state.clients.get_mut(usize::from(self.index)),
        ) else {
            return Err(SubmitError::Busy);
        };
        state.disk.submit(BlockRequest { tag: Tag(slot), ..request }, now)?;
        *owner = Owner { client: self.index, tag: request.tag };
        account.at_disk += 1;
        state.free &= state.free - 1;
        Ok(())
    }

    fn kick(&mut self) {
        self.lock().disk.kick();
    }

    fn poll(&mut self, now: Ticks) -> Option<(Tag, BlockStatus)> {
        let mut state = self.lock();
        let mailbox = state.clients.get_mut(usize::from(self.index));
        if let Some(finished) = mailbox.and_then(|account| account.finished.pop_front()) {
            return Some(finished);
        }
        // As many as can be at the disk: one that answers at once cannot hold us here.
        for _ in 0..SLOTS {
            let (client, tag, status) = state.next_finished(now)?;
            if client == self.index {
                return Some((tag, status));
            }
            state.post(client, tag, status, None);
        }
        None
    }

    fn in_flight(&self) -> usize {
        let state = self.lock();
        let account = state.clients.get(usize::from(self.index));
        account.map_or(0, |account| usize::from(account.at_disk) + account.finished.len())
    }

    fn dma_stopped(&self) -> bool {
        self.lock().disk.dma_stopped()
    }
}

#[cfg(test)]
mod tests;
