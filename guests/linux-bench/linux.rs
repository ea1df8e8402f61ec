//! The kernel's interface on arm64: entry, system calls, and the counter it lets programs read.

use core::arch::{asm, global_asm};
use core::ffi::{CStr, c_char};

const OPENAT: usize = 56;
const LSEEK: usize = 62;
const WRITE: usize = 64;
const PREAD64: usize = 67;
const PWRITE64: usize = 68;
const EXIT_GROUP: usize = 94;

const AT_FDCWD: usize = -100isize as usize;
const O_WRONLY: usize = 1;
const O_DIRECT: usize = 0x1_0000;
const SEEK_END: usize = 2;

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
    let result: isize;
    // SAFETY: the callers below pass memory of their own, of the length they say.
    unsafe {
        asm!("svc #0", in("x8") number, inout("x0") x0 => result, in("x1") x1, in("x2") x2,
            in("x3") x3, options(nostack));
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

/// Bytes the device holds.
pub(crate) fn size(file: usize) -> Result<u64, isize> {
    usable(call(LSEEK, [file, 0, SEEK_END, 0])).map(|size| size as u64)
}

/// Reads at a byte offset; bytes read or the negated error.
pub(crate) fn read_at(file: usize, bytes: &mut [u8], at: u64) -> isize {
    call(PREAD64, [file, bytes.as_mut_ptr() as usize, bytes.len(), at as usize])
}

/// Writes at a byte offset; bytes written or the negated error.
pub(crate) fn write_at(file: usize, bytes: &[u8], at: u64) -> isize {
    call(PWRITE64, [file, bytes.as_ptr() as usize, bytes.len(), at as usize])
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
