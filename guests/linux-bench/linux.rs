//! The kernel's interface on arm64: entry, system calls, and the counter it lets programs read.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};

const IO_SETUP: usize = 0;
const IO_SUBMIT: usize = 2;
const IO_GETEVENTS: usize = 4;
const FALLOCATE: usize = 47;
const OPENAT: usize = 56;
const LSEEK: usize = 62;
const READ: usize = 63;
const WRITE: usize = 64;
const PREAD64: usize = 67;
const PWRITE64: usize = 68;
const FSYNC: usize = 82;
const EXIT_GROUP: usize = 94;
const SOCKET: usize = 198;
const BIND: usize = 200;
const LISTEN: usize = 201;
const ACCEPT: usize = 202;
const CONNECT: usize = 203;
const SENDTO: usize = 206;
const RECVFROM: usize = 207;
const SHUTDOWN: usize = 210;

const AT_FDCWD: usize = -100isize as usize;
const O_WRONLY: usize = 1;
const O_RDWR: usize = 2;
const O_DIRECT: usize = 0x1_0000;
const SEEK_END: usize = 2;
const FALLOC_FL_KEEP_SIZE: usize = 1;
const FALLOC_FL_PUNCH_HOLE: usize = 2;
const FALLOC_FL_ZERO_RANGE: usize = 16;

global_asm!(
    ".global _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl linux_entry",
    "brk #0",
);

/// The stack at entry: argc, argv[argc], NULL.
#[unsafe(no_mangle)]
unsafe extern "C" fn linux_entry(stack: *const usize) -> ! {
    // SAFETY: the kernel's ABI for a new program.
    let count = unsafe { *stack };
    let arguments = (1..=count).map(move |n| {
        // SAFETY: as above; the array has `count` entries after its length.
        let text = unsafe { stack.wrapping_add(n).read() } as *const c_char;
        // SAFETY: as above; each is a string that stays for the program's life.
        unsafe { CStr::from_ptr(text) }
    });
    exit(super::run(arguments))
}

fn call(number: usize, arguments: [usize; 4]) -> isize {
    let [x0, x1, x2, x3] = arguments;
    call_with_six(number, [x0, x1, x2, x3, 0, 0])
}

fn call_with_six(number: usize, arguments: [usize; 6]) -> isize {
    let [x0, x1, x2, x3, x4, x5] = arguments;
    let result: isize;
    // SAFETY: the callers below pass memory of their own, of the length they say; what the kernel
    // reads or writes later stays in static memory.
    unsafe {
        asm!("svc #0", in("x8") number, inout("x0") x0 => result, in("x1") x1, in("x2") x2,
            in("x3") x3, in("x4") x4, in("x5") x5, options(nostack));
    }
    result
}

/// Ends the program.
pub(crate) fn exit(status: i32) -> ! {
    loop {
        call(EXIT_GROUP, [status as usize, 0, 0, 0]);
    }
}

/// Writes to a file descriptor; bytes written or the negated error.
pub(crate) fn write(file: usize, bytes: &[u8]) -> isize {
    call(WRITE, [file, bytes.as_ptr() as usize, bytes.len(), 0])
}

/// Opens past the page cache, to write or to read.
pub(crate) fn open_direct(path: &CStr, to_write: bool) -> Result<usize, isize> {
    let mode = if to_write { O_WRONLY } else { 0 };
    usable(call(OPENAT, [AT_FDCWD, path.as_ptr() as usize, mode | O_DIRECT, 0]))
}

/// Opens past the page cache, to write and to read.
pub(crate) fn open_direct_both(path: &CStr) -> Result<usize, isize> {
    usable(call(OPENAT, [AT_FDCWD, path.as_ptr() as usize, O_RDWR | O_DIRECT, 0]))
}

/// Bytes the device holds.
pub(crate) fn size(file: usize) -> Result<u64, isize> {
    usable(call(LSEEK, [file, 0, SEEK_END, 0])).map(|size| size as u64)
}

/// Once this is done, what was written to the file (or device) outlives a power cut.
pub(crate) fn flush(file: usize) -> Result<(), isize> {
    usable(call(FSYNC, [file, 0, 0, 0])).map(drop)
}

/// Reads at a byte offset; bytes read or the negated error.
pub(crate) fn read_at(file: usize, bytes: &mut [u8], at: u64) -> isize {
    call(PREAD64, [file, bytes.as_mut_ptr() as usize, bytes.len(), at as usize])
}

/// Writes at a byte offset; bytes written or the negated error.
pub(crate) fn write_at(file: usize, bytes: &[u8], at: u64) -> isize {
    call(PWRITE64, [file, bytes.as_ptr() as usize, bytes.len(), at as usize])
}

/// A request of the kernel's asynchronous I/O (`struct iocb`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Request {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event_file: u32,
}

impl Request {
    /// Reads to or writes from `length` bytes at `buffer`, static memory that nothing else uses until
    /// the answer has come. `name` comes back with it.
    pub(crate) fn new(
        name: u64,
        write: bool,
        file: usize,
        buffer: *mut u8,
        length: usize,
        at: u64,
    ) -> Self {
        Self {
            data: name,
            opcode: u16::from(write),
            file: file as u32,
            buffer: buffer as u64,
            length: length as u64,
            offset: at as i64,
            ..Self::default()
        }
    }
}

/// An answer (`struct io_event`).
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Event {
    /// The request's name.
    pub(crate) name: u64,
    object: u64,
    /// Bytes, or the negated error.
    pub(crate) result: i64,
    result2: i64,
}

/// Requests in flight.
pub(crate) struct Ring(usize);

impl Ring {
    /// For so many at once.
    pub(crate) fn new(depth: usize) -> Result<Self, isize> {
        let mut context = 0usize;
        usable(call(IO_SETUP, [depth, &raw mut context as usize, 0, 0]))?;
        Ok(Self(context))
    }

    /// Starts all of `requests`, at most 64.
    pub(crate) fn submit(&self, requests: &mut [Request]) -> Result<(), isize> {
        let mut list = [core::ptr::null_mut(); 64];
        for (entry, request) in list.iter_mut().zip(requests.iter_mut()) {
            *entry = request as *mut Request;
        }
        let (mut from, count) = (0, requests.len().min(list.len()));
        while from < count {
            let left = list[from..count].as_ptr() as usize;
            from += usable(call(IO_SUBMIT, [self.0, count - from, left, 0]))?;
        }
        Ok(())
    }

    /// Waits for one at least; how many there are.
    pub(crate) fn wait(&self, events: &mut [Event]) -> Result<usize, isize> {
        let to = events.as_mut_ptr() as usize;
        usable(call_with_six(IO_GETEVENTS, [self.0, 1, events.len(), to, 0, 0]))
    }
}

/// An IPv4 address and a port (`struct sockaddr_in`), or a CID and one (`struct sockaddr_vm`), which is as
/// long.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Address {
    family: u16,
    port: [u8; 2],
    host: [u8; 4],
    cid: u32,
    zero: [u8; 4],
}

const AF_INET: u16 = 2;
const AF_VSOCK: u16 = 40;

/// Types of sockets.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A stream of bytes.
    Stream = 1,
    /// Datagrams.
    Datagram = 2,
    /// Messages over a connection.
    Messages = 5,
}

impl Address {
    /// Of a host; 0.0.0.0 is this one.
    pub(crate) fn new(host: [u8; 4], port: u16) -> Self {
        Self { family: AF_INET, port: port.to_be_bytes(), host, ..Self::default() }
    }

    /// Of a guest, or of the hypervisor; all ones is this one.
    pub(crate) fn vsock(cid: u32, port: u32) -> Self {
        Self { family: AF_VSOCK, host: port.to_ne_bytes(), cid, ..Self::default() }
    }
}

/// A socket for addresses like this one.
pub(crate) fn socket(like: &Address, kind: Kind) -> Result<usize, isize> {
    usable(call(SOCKET, [like.family.into(), kind as usize, 0, 0]))
}

/// Nothing more is sent.
pub(crate) fn end(socket: usize) -> Result<(), isize> {
    usable(call(SHUTDOWN, [socket, 1, 0, 0])).map(drop)
}

/// Gives a socket its own address.
pub(crate) fn bind(socket: usize, address: &Address) -> Result<(), isize> {
    usable(call(BIND, [socket, &raw const *address as usize, size_of::<Address>(), 0])).map(drop)
}

/// Says whom a socket speaks to; of TCP, connects it.
pub(crate) fn connect(socket: usize, address: &Address) -> Result<(), isize> {
    usable(call(CONNECT, [socket, &raw const *address as usize, size_of::<Address>(), 0])).map(drop)
}

/// Waits for a connection.
pub(crate) fn accept(socket: usize) -> Result<usize, isize> {
    usable(call(LISTEN, [socket, 1, 0, 0]))?;
    usable(call(ACCEPT, [socket, 0, 0, 0]))
}

/// Reads from a file descriptor; 0 at its end.
pub(crate) fn read(file: usize, bytes: &mut [u8]) -> Result<usize, isize> {
    usable(call(READ, [file, bytes.as_mut_ptr() as usize, bytes.len(), 0]))
}

/// Receives a datagram: its length, and who sent it.
pub(crate) fn receive_from(socket: usize, bytes: &mut [u8]) -> Result<(usize, Address), isize> {
    let (mut from, mut length) = (Address::default(), size_of::<Address>() as u32);
    let to = bytes.as_mut_ptr() as usize;
    let place = [socket, to, bytes.len(), 0, &raw mut from as usize, &raw mut length as usize];
    Ok((usable(call_with_six(RECVFROM, place))?, from))
}

/// Sends a datagram.
pub(crate) fn send_to(socket: usize, bytes: &[u8], to: &Address) -> Result<(), isize> {
    let to = &raw const *to as usize;
    let what = [socket, bytes.as_ptr() as usize, bytes.len(), 0, to, size_of::<Address>()];
    usable(call_with_six(SENDTO, what)).map(drop)
}

/// Has a device read as zeros from a byte offset on, by requests for that; it may give the space up if
/// `unmap` says so.
pub(crate) fn zero(file: usize, at: u64, bytes: u64, unmap: bool) -> Result<(), isize> {
    let how = if unmap { FALLOC_FL_PUNCH_HOLE } else { FALLOC_FL_ZERO_RANGE };
    let arguments = [file, how | FALLOC_FL_KEEP_SIZE, at as usize, bytes as usize];
    usable(call(FALLOCATE, arguments)).map(|_| ())
}

fn usable(result: isize) -> Result<usize, isize> {
    usize::try_from(result).map_err(|_| result)
}

/// CNTVCT_EL0, after everything before it.
pub(crate) fn counter() -> u64 {
    let ticks: u64;
    // SAFETY: Linux lets programs read it.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nostack)) };
    ticks
}

/// CNTFRQ_EL0: ticks a second.
pub(crate) fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: as above.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack)) };
    hertz.max(1)
}

/// Executes `turns` times two instructions.
pub(crate) fn spin(turns: u64) {
    // SAFETY: registers only.
    unsafe {
        asm!("2: subs {0}, {0}, #1", "b.ne 2b", inout(reg) turns => _, options(nomem, nostack))
    };
}
