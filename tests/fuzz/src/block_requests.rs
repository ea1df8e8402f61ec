//! Requests of a driver that keeps to the rules, cut up in every way, against a model of the disk.

use sparkler::virtio::devices::block::Block;
use sparkler::virtio::{MmioTransport, Width};

use crate::disk::{Disk, IDENTITY, Kind, MOODY_RANGE, Watch};
use crate::guest::{AREAS, BUFFERS, Bus, Guest, PACKED, RINGS, SECTOR, SECTORS, memories};
use crate::honest;
use crate::input::Input;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const EVENT_IDX: u64 = 1 << 29;
const CONFIG_WCE: u64 = 1 << 11;

/// Requests for ranges; their features are two bits above.
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// `writeback`.
const WRITEBACK: u16 = 0x120;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Requests in flight at once, each with its own part of the guest's memory.
const ROOMS: usize = 16;
const ROOM_SIZE: u64 = 0x600;
/// Where in a room its indirect table is.
const TABLE: u64 = 0x480;
/// Buffers of a request, at the most.
const PIECES: usize = 12;
/// Actions of one input, at the most.
const MAX_ACTIONS: usize = 300;

/// Requests of all types, lengths and cuts, direct and indirect, over a queue that wraps, with
/// notifications and interrupts only when the other side asked for them. Each must be answered
/// once, as the model says, and none may wait for ever.
pub fn block_requests(data: &[u8]) {
    let input = &mut Input::new(data);
    let (_guard, guest, disk) = memories();
    let kind = Kind::from_byte(input.u8());
    let (mut disk, watch) = Disk::new(kind, disk, &guest);
    let mood = u32::from(input.u8());
    watch.mood.set(mood);
    let mut block = Block::new(&mut disk);
    let mut transport = MmioTransport::new(&mut block, guest.memory.clone());
    let mut bus = Bus::new(&mut transport);
    let model = Model::new(kind);
    let mut driver = Driver::start(&mut bus, &guest, &watch, kind, model, input);

    for _ in 0..MAX_ACTIONS {
        if !input.more() {
            break;
        }
        match input.below(16) {
            0..=6 => driver.request(input),
            7 | 8 => driver.kick(&mut bus),
            9 | 10 => driver.poll(&mut bus),
            11 | 12 => driver.collect(),
            13 => driver.suppress(input.flag()),
            14 => {
                // Not asked for, and allowed all the same.
                bus.set(0x50, 0);
                // As is to turn the cache off or on.
                let value = (u64::from(driver.available) + driver.put) & 1;
                let _ = bus.store(WRITEBACK, Width::Byte, value);
                driver.heard(&mut bus);
            }
            _ => match input.below(4) {
                0 => {
                    bus.set(0x70, 0);
                    let model = driver.after_reset();
                    driver = Driver::start(&mut bus, &guest, &watch, kind, model, input);
                }
                1 => driver.reset_queue(&mut bus),
                _ => driver.drain(&mut bus),
            },
        }
    }
    driver.drain(&mut bus);
    honest::prove(&mut bus, &guest, kind, &watch);
}

/// The disk as it must be.
struct Model {
    sectors: Vec<u8>,
    kind: Kind,
    agreed: u64,
    /// Writes whose fate a reset has hidden: what is in their sectors is not known.
    unknown: [bool; SECTORS],
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    status: u8,
    used: u32,
    /// What is at the beginning of the writable part, if the model knows it.
    data: Option<Vec<u8>>,
}

impl Model {
    fn new(kind: Kind) -> Self {
        let sectors = (0..SECTORS).flat_map(|sector| [0xC0 | sector as u8; SECTOR]).collect();
        Self { sectors, kind, agreed: 0, unknown: [false; SECTORS] }
    }

    /// The answer to a discard or to write zeroes, and the sectors it is about.
    fn range(&self, request_type: u32, data: &[u8]) -> (u8, std::ops::Range<usize>) {
        let feature = if request_type == DISCARD { 13 } else { 14 };
        if self.agreed >> feature & 1 == 0 {
            return (UNSUPPORTED, 0..0);
        }
        let Some((segment, more)) = data.split_at_checked(16) else {
            return (IO_ERROR, 0..0);
        };
        let sector = u64::from_le_bytes(segment[..8].try_into().unwrap());
        let count = u32::from_le_bytes(segment[8..12].try_into().unwrap());
        let flags = u32::from_le_bytes(segment[12..].try_into().unwrap());
        if flags > u32::from(request_type == WRITE_ZEROES) || !more.is_empty() {
            return (UNSUPPORTED, 0..0);
        }
        let end = sector.saturating_add(count.into());
        if end > SECTORS as u64 || self.kind == Kind::Moody && count > MOODY_RANGE {
            return (IO_ERROR, 0..0);
        }
        (OK, sector as usize..end as usize)
    }

    /// Carries a request out: the readable bytes, and room for `writable` with the status.
    fn answer(&mut self, readable: &[u8], writable: usize) -> Answer {
        let room = writable - 1;
        let refused = |status| {
            // Without data there is no gap before the status.
            Answer { status, used: u32::from(room == 0), data: None }
        };
        let Some((header, data)) = readable.split_at_checked(16) else {
            return refused(IO_ERROR);
        };
        let request_type = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let range = |len: usize| {
            let end = sector.checked_mul(512)?.checked_add(len as u64)?;
            let whole = len.is_multiple_of(SECTOR) && end <= (SECTORS * SECTOR) as u64;
            whole.then(|| sector as usize * SECTOR..end as usize)
        };
        match request_type {
            0 => match range(room) {
                None => refused(IO_ERROR),
                Some(range) => {
                    let known = self.kind != Kind::Null
                        && !range.clone().step_by(SECTOR).any(|at| self.unknown[at / SECTOR]);
                    let data = known.then(|| self.sectors[range].to_vec());
                    Answer { status: OK, used: writable as u32, data }
                }
            },
            1 => match range(data.len()) {
                Some(range) if self.kind != Kind::ReadOnly => {
                    for at in range.clone().step_by(SECTOR) {
                        self.unknown[at / SECTOR] = false;
                    }
                    self.sectors[range].copy_from_slice(data);
                    refused(OK)
                }
                _ => refused(IO_ERROR),
            },
            4 => refused(OK),
            DISCARD | WRITE_ZEROES => {
                let (status, range) = self.range(request_type, data);
                for sector in range {
                    self.unknown[sector] = false;
                    self.sectors[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
                }
                refused(status)
            }
            8 if room < 20 => refused(IO_ERROR),
            8 => {
                let id = if self.kind == Kind::Null { [0; 20] } else { IDENTITY };
                let used = if room == 20 { 21 } else { 20 };
                Answer { status: OK, used, data: Some(id.to_vec()) }
            }
            _ => refused(UNSUPPORTED),
        }
    }
}

/// A request the driver waits for.
struct Pending {
    head: u16,
    room: usize,
    descriptors: Vec<u16>,
    /// Writable pieces: address, length.
    writable: Vec<(u64, usize)>,
    readable: Vec<u8>,
    answer: Answer,
}

struct Driver<'a> {
    guest: &'a Guest,
    watch: &'a Watch,
    kind: Kind,
    model: Model,
    size: u16,
    event_idx: bool,
    indirect: bool,
    free: Vec<u16>,
    rooms: Vec<usize>,
    pending: Vec<Pending>,
    available: u16,
    /// `avail.idx` when the device was last notified, or found not to want it.
    kicked: u16,
    seen: u16,
    /// The ring is packed; its counters then are of descriptors: made available, the same when the
    /// device was last notified, and seen to be used.
    packed: bool,
    put: u64,
    put_kicked: u64,
    taken: u64,
    /// The driver has asked for an interrupt at the next completion, and has had none since.
    armed: bool,
    suppressed: bool,
    interrupts: usize,
}

impl<'a> Driver<'a> {
    /// Sets the device up.
    fn start(
        bus: &mut Bus<'_, '_, '_>,
        guest: &'a Guest,
        watch: &'a Watch,
        kind: Kind,
        model: Model,
        input: &mut Input<'_>,
    ) -> Self {
        let (features, size) = (u64::from(input.u8()), input.u8());
        let packed = features & 8 != 0;
        // Only a split ring's size is a power of two.
        let size = if packed { u16::from(size).max(1) } else { 1 << (size % 9) };
        bus.set(0x70, 0);
        guest.put(AREAS.descriptor, &[0; 0x1000]);
        guest.put(AREAS.driver, &[0; RINGS]);
        let wanted = 1 << 32 | 1 << 40 | (features & 3) << 28 | (features >> 2 & 1) << 9;
        let wanted = wanted | if packed { PACKED } else { 0 };
        // DISCARD, WRITE_ZEROES, CONFIG_WCE.
        let wanted = wanted | (!features >> 4 & 3) << 13 | ((features >> 6 & 1) * CONFIG_WCE);
        let agreed = bus.bring_up(wanted, size);
        let model = Model { agreed, ..model };
        Self {
            guest,
            watch,
            kind,
            model,
            size,
            event_idx: agreed & EVENT_IDX != 0,
            indirect: agreed >> 28 & 1 != 0,
            free: (0..size).collect(),
            rooms: (0..ROOMS).collect(),
            pending: vec![],
            available: 0,
            kicked: 0,
            seen: 0,
            packed: agreed & PACKED != 0,
            put: 0,
            put_kicked: 0,
            taken: 0,
            armed: true,
            suppressed: false,
            interrupts: bus.interrupts,
        }
    }

    /// Makes a request available.
    fn request(&mut self, input: &mut Input<'_>) {
        let Some(room) = self.rooms.pop() else { return };
        let (readable, writable) = contents(input);
        let base = BUFFERS + room as u64 * ROOM_SIZE;
        let mut at = base;
        let mut pieces = vec![];
        cut(input, readable.len(), &mut at, |place| pieces.push((place, false)));
        let readable_pieces = pieces.len();
        cut(input, writable, &mut at, |place| pieces.push((place, true)));
        let direct = match (self.indirect, input.below(4)) {
            (true, 0 | 1) => 0,
            // In a packed ring a list is of one kind.
            (true, 2) if !self.packed => input.below(pieces.len()),
            _ => pieces.len(),
        };
        let descriptors = if direct == pieces.len() { direct } else { direct + 1 };
        if descriptors > self.free.len() {
            return self.rooms.push(room);
        }
        let mut done = 0;
        for ((place, len), _) in &pieces[..readable_pieces] {
            self.guest.put(*place, &readable[done..done + len]);
            done += len;
        }
        for ((place, len), _) in &pieces[readable_pieces..] {
            self.guest.put(*place, &vec![0xDD; *len]);
        }
        let descriptors: Vec<u16> = (0..descriptors)
            .map(|_| self.free.swap_remove(input.below(self.free.len().min(256))))
            .collect();
        let flags = |writable: bool, last: bool| {
            (if writable { WRITE } else { 0 }) | (if last { 0 } else { NEXT })
        };
        let head = descriptors[0];
        let table = base + TABLE + input.below(16) as u64;
        for (index, ((place, len), writable)) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            let flags = flags(*writable, last);
            if index < direct {
                if self.packed {
                    self.put_packed((*place, *len as u32, flags), head);
                    continue;
                }
                let next = descriptors.get(index + 1).copied().unwrap_or(0x7777);
                let at = AREAS.descriptor + 16 * u64::from(descriptors[index]);
                self.guest.descriptor(at, (*place, *len as u32, flags, next));
            } else if self.packed {
                // The table's order is the list's; what is where the other ring has flags is not
                // looked at.
                let (at, flags) = (table + 16 * (index - direct) as u64, flags & WRITE);
                self.guest.descriptor(at, (*place, *len as u32, 0x7777, flags));
            } else {
                let index = index - direct;
                let at = table + 16 * index as u64;
                self.guest.descriptor(at, (*place, *len as u32, flags, index as u16 + 1));
            }
        }
        if direct < pieces.len() {
            let at = AREAS.descriptor + 16 * u64::from(descriptors[direct]);
            let len = 16 * (pieces.len() - direct) as u32;
            if self.packed {
                self.put_packed((table, len, INDIRECT), head);
            } else {
                self.guest.descriptor(at, (table, len, INDIRECT, 0x7777));
            }
        }
        if !self.packed {
            self.announce(head);
        }
        let answer = self.model.answer(&readable, writable);
        let writable = pieces[readable_pieces..].iter().map(|(piece, _)| *piece).collect();
        self.pending.push(Pending { head, room, descriptors, writable, readable, answer });
    }

    /// Index and wrap counter of a place in the packed ring.
    fn position(&self, count: u64) -> u16 {
        let lap = count / u64::from(self.size);
        (count % u64::from(self.size)) as u16 | (u16::from(lap.is_multiple_of(2))) << 15
    }

    /// Writes the next descriptor of a packed ring: address, length, flags.
    fn put_packed(&mut self, (address, len, flags): (u64, u32, u16), id: u16) {
        let position = self.position(self.put);
        let available = if position >> 15 == 1 { AVAIL } else { USED };
        let at = AREAS.descriptor + 16 * u64::from(position & 0x7FFF);
        // The buffer ID is where a split ring's descriptor has its flags.
        self.guest.descriptor(at, (address, len, id, flags | available));
        self.put += 1;
    }

    /// Makes a chain of a split ring available.
    fn announce(&mut self, head: u16) {
        let slot = u64::from(self.available & (self.size - 1));
        self.guest.put_u16(AREAS.driver + 4 + 2 * slot, head);
        self.available = self.available.wrapping_add(1);
        self.guest.put_u16(AREAS.driver + 2, self.available);
    }

    /// Notifies the device if it asked for that.
    fn kick(&mut self, bus: &mut Bus<'_, '_, '_>) {
        let added = self.available.wrapping_sub(self.kicked);
        let wanted = if self.packed {
            let event = self.guest.get_u16(AREAS.device);
            let mut new = self.put_kicked..self.put;
            match self.guest.get_u16(AREAS.device + 2) {
                0 => !new.is_empty(),
                2 => new.any(|count| self.position(count) == event),
                _ => false,
            }
        } else if self.event_idx {
            let event = self.guest.get_u16(AREAS.device + 4 + 8 * u64::from(self.size));
            self.available.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            added != 0 && self.guest.get_u16(AREAS.device) & 1 == 0
        };
        self.kicked = self.available;
        self.put_kicked = self.put;
        if wanted {
            bus.set(0x50, 0);
            self.heard(bus);
        }
    }

    fn poll(&mut self, bus: &mut Bus<'_, '_, '_>) {
        bus.poll();
        self.heard(bus);
    }

    /// Takes note of an interrupt.
    fn heard(&mut self, bus: &mut Bus<'_, '_, '_>) {
        assert_eq!(
            bus.get(0x70),
            15,
            "a proper request breaks the device: {:?}",
            bus.transport.fault()
        );
        if bus.interrupts != self.interrupts {
            let by_chance = self.event_idx && !self.packed;
            assert!(!self.suppressed || by_chance, "an interrupt nobody wanted");
            assert_eq!(bus.get(0x60), 1);
            bus.set(0x64, 1);
            self.interrupts = bus.interrupts;
            self.armed = false;
        }
    }

    /// Says whether interrupts are wanted; looks at the ring when they are.
    fn suppress(&mut self, suppressed: bool) {
        self.suppressed = suppressed;
        if suppressed && self.packed {
            self.guest.put_u16(AREAS.driver + 2, 1);
            self.armed = false;
        } else if suppressed {
            // Half a turn of the index away; ignored with EVENT_IDX is the flag, not the event.
            self.guest.put_u16(AREAS.driver, u16::from(!self.event_idx));
            let event = self.seen.wrapping_sub(0x4000);
            self.guest.put_u16(AREAS.driver + 4 + 2 * u64::from(self.size), event);
            self.armed = false;
        } else {
            self.collect();
        }
    }

    /// Takes the answers there are, and asks for an interrupt at the next.
    fn collect(&mut self) {
        if self.packed {
            return self.collect_packed();
        }
        let used = self.guest.get_u16(AREAS.device + 2);
        assert!(usize::from(used.wrapping_sub(self.seen)) <= self.pending.len(), "answered twice");
        // A driver that sleeps until the interrupt would sleep for ever.
        assert!(!self.armed || used == self.seen, "an answer without an interrupt");
        while self.seen != used {
            let slot = u64::from(self.seen & (self.size - 1));
            let element = AREAS.device + 4 + 8 * slot;
            let [id, len] = [element, element + 4].map(|at| u32::from_le_bytes(self.guest.get(at)));
            self.seen = self.seen.wrapping_add(1);
            let at = self.pending.iter().position(|pending| u32::from(pending.head) == id);
            let pending = self.pending.swap_remove(at.expect("an answer nobody waits for"));
            self.check(&pending, len);
            self.free.extend(&pending.descriptors);
            self.rooms.push(pending.room);
        }
        if !self.suppressed {
            self.guest.put_u16(AREAS.driver, 0);
            self.guest.put_u16(AREAS.driver + 4 + 2 * u64::from(self.size), self.seen);
            self.armed = true;
        }
    }

    /// The same in a packed ring.
    fn collect_packed(&mut self) {
        loop {
            let position = self.position(self.taken);
            let at = AREAS.descriptor + 16 * u64::from(position & 0x7FFF);
            let used = if position >> 15 == 1 { AVAIL | USED } else { 0 };
            if self.taken == self.put || self.guest.get_u16(at + 14) & (AVAIL | USED) != used {
                break;
            }
            assert!(!self.armed, "an answer without an interrupt");
            let (id, len) =
                (self.guest.get_u16(at + 12), u32::from_le_bytes(self.guest.get(at + 8)));
            let at = self.pending.iter().position(|pending| pending.head == id);
            let pending = self.pending.swap_remove(at.expect("an answer nobody waits for"));
            self.taken += pending.descriptors.len() as u64;
            self.check(&pending, len);
            self.free.extend(&pending.descriptors);
            self.rooms.push(pending.room);
        }
        if !self.suppressed {
            self.guest.put_u16(AREAS.driver, self.position(self.taken));
            self.guest.put_u16(AREAS.driver + 2, if self.event_idx { 2 } else { 0 });
            self.armed = true;
        }
    }

    /// Compares an answer with the model's.
    fn check(&mut self, pending: &Pending, used: u32) {
        let mut bytes = vec![];
        for (address, len) in &pending.writable {
            bytes.extend(self.guest.get_vec(*address, *len));
        }
        let (status, data) = bytes.split_last().unwrap();
        let Answer { status: expected, used: length, data: contents } = &pending.answer;
        let header = &pending.readable[..pending.readable.len().min(16)];
        if self.kind == Kind::Moody && *expected == OK {
            // It may fail, and takes requests in any order.
            assert!(*status <= 2, "status {status}");
            assert!(*status != OK || used == *length, "{used} for {length}");
            return;
        }
        assert_eq!((*status, used), (*expected, *length), "header {header:02x?}");
        if let Some(contents) = contents {
            assert!(data.starts_with(contents), "header {header:02x?}: other data");
            assert!(data[contents.len()..].iter().all(|byte| *byte == 0xDD), "wrote too much");
        } else if *status != OK {
            assert!(data.iter().all(|byte| *byte == 0xDD), "wrote for a refused request");
        }
    }

    /// Lets the device finish everything.
    fn drain(&mut self, bus: &mut Bus<'_, '_, '_>) {
        self.kick(bus);
        for _ in 0..10_000 {
            if !bus.transport.has_work_in_flight() {
                break;
            }
            self.poll(bus);
        }
        self.collect();
        let left: Vec<_> = self.pending.iter().map(|pending| pending.head).collect();
        assert!(left.is_empty(), "requests {left:?} are forgotten");
        assert_eq!(self.watch.in_flight(), 0);
    }

    /// The queue alone is reset, and set up anew.
    fn reset_queue(&mut self, bus: &mut Bus<'_, '_, '_>) {
        bus.reset_queue();
        assert_eq!(self.watch.in_flight(), 0, "a queue's reset is over too early");
        self.forget();
        self.guest.put(AREAS.driver, &[0; RINGS]);
        bus.set(0x64, 1);
        self.interrupts = bus.interrupts;
        self.guest.put(AREAS.descriptor, &[0; 0x1000]);
        (self.available, self.kicked, self.seen) = (0, 0, 0);
        (self.put, self.put_kicked, self.taken) = (0, 0, 0);
        (self.armed, self.suppressed) = (true, false);
        bus.configure_queue(self.size, &AREAS);
    }

    /// Requests that a reset has ended: whether their writes were done is not known.
    fn forget(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            if let Some((header, data)) = pending.readable.split_at_checked(16)
                && [1, DISCARD as u8, WRITE_ZEROES as u8].contains(&header[0])
            {
                let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
                let sectors = if header[0] == 1 { data.len().div_ceil(SECTOR) } else { SECTORS };
                let end = sector.saturating_add(sectors as u64);
                for sector in sector.min(SECTORS as u64)..end.min(SECTORS as u64) {
                    self.model.unknown[sector as usize] = true;
                }
            }
            self.free.extend(&pending.descriptors);
            self.rooms.push(pending.room);
        }
    }

    /// The disk's state, for the next driver.
    fn after_reset(mut self) -> Model {
        assert_eq!(self.watch.in_flight(), 0);
        self.forget();
        self.model
    }
}

/// The readable bytes of a request, and the length of its writable part.
fn contents(input: &mut Input<'_>) -> (Vec<u8>, usize) {
    let (kind, shape) = (input.below(8), input.u8());
    let request_type: u32 = match kind {
        0..=2 => 0,
        3 | 4 => 1,
        5 => 4,
        6 => 8,
        _ => match input.u32() {
            any if any & 7 < 3 => DISCARD,
            any if any & 7 < 6 => WRITE_ZEROES,
            any => any,
        },
    };
    let sector = match input.u8() {
        small @ 0..0xF0 => u64::from(small % 20),
        0xF0..0xF8 => u64::MAX - u64::from(input.u8()),
        _ => input.u64(),
    };
    let len = match shape >> 6 {
        0 | 1 => 512 * usize::from(1 + (shape & 1)),
        2 => usize::from(shape & 63),
        _ => 480 + usize::from(shape & 63),
    };
    let mut readable = vec![0; 16];
    readable[..4].copy_from_slice(&request_type.to_le_bytes());
    readable[4..8].copy_from_slice(&[shape; 4]);
    readable[8..].copy_from_slice(&sector.to_le_bytes());
    let stamp = input.u8();
    let fill = |len: usize| (0..len).map(move |at| stamp ^ at as u8 ^ (at >> 8) as u8);
    let mut writable = 1;
    if request_type == 1 {
        readable.extend(fill(len));
    } else if [DISCARD, WRITE_ZEROES].contains(&request_type) {
        // The header's sector is the range's too, though it means nothing there.
        let flags = if stamp < 0xC0 { u32::from(stamp & 1) } else { 1 << (stamp & 31) };
        readable.extend(sector.to_le_bytes());
        readable.extend(u32::from(shape & 15).to_le_bytes());
        readable.extend(flags.to_le_bytes());
    } else {
        writable += len;
    }
    match input.u8() {
        // Too short a header, and data on the side where it is not looked for.
        0xF0..0xF8 => readable.truncate(usize::from(stamp & 15)),
        0xF8..=0xFF if request_type == 1 => writable += usize::from(stamp & 31),
        0xF8..=0xFF => readable.extend(fill(usize::from(stamp & 31))),
        _ => (),
    }
    (readable, writable)
}

/// Cuts `len` bytes from `at` on into a few buffers, with gaps, some of them empty.
fn cut(input: &mut Input<'_>, len: usize, at: &mut u64, mut place: impl FnMut((u64, usize))) {
    let mut left = len;
    let pieces = if len == 0 { input.below(2) } else { 1 + input.below(PIECES / 2) };
    for piece in 1..=pieces {
        let part = match input.u8() {
            _ if piece == pieces => left,
            whole @ 0..0x40 => usize::from(whole).min(left),
            share => left * usize::from(share) / 256,
        };
        *at += u64::from(input.u8() & 7);
        place((*at, part));
        *at += part as u64;
        left -= part;
    }
}
