//! Kernel files: their headers, and where the loader puts them.

use std::sync::OnceLock;

use sparkler::memory::{GuestMemory, HostRam, Ipa, Pa, SharedSlice};
use sparkler::vm::image::{ImageError, KernelImage};
use sparkler::vm::loader::{COPY, LoadError, Modules, copy, finish};

use crate::input::Input;

const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 8 << 20;
const FILE: usize = 0x1_0000;
const FDT: [u8; 64] = [0xFD; 64];

/// A file's header is read, and the file loaded as kernel into a small guest.
pub fn kernel_image(data: &[u8]) {
    static MEMORY: OnceLock<[HostRam; 2]> = OnceLock::new();
    let [ram, file] = MEMORY.get_or_init(|| [HostRam::new(RAM_SIZE), HostRam::new(FILE)]);
    let mut input = Input::new(data);
    // Where in the file the header is, so that it is not always aligned.
    let (at, ramdisk) = (input.below(16), usize::from(input.u8()) * 256);
    let bytes = input.bytes(FILE - 16);
    let file = file.slice(Pa::new(0x1000_0000)).subslice(at, bytes.len()).unwrap();
    file.write_bytes(0, bytes).unwrap();
    let parsed = KernelImage::parse(file);
    match parsed {
        Ok(image) => {
            assert!(image.memory >= bytes.len() as u64 && bytes.len() >= 4);
            assert!(image.memory <= 1 << 40 && image.offset <= 1 << 40);
        }
        Err(ImageError::Empty) => assert!(bytes.len() < 4),
        Err(ImageError::Truncated { expected }) => assert!(expected > bytes.len() as u64),
        Err(ImageError::Compressed | ImageError::Unsupported) => (),
    }
    let slice = ram.slice(Pa::new(0x2_0000_0000));
    let mut memory = GuestMemory::new();
    assert!(memory.add(Ipa::new(RAM), slice).is_ok());
    let modules = Modules {
        kernel: file,
        ramdisk: slice.subslice(0, ramdisk.min(FILE)).filter(|it| !it.is_empty()),
        bootargs: "",
    };
    let mut written = vec![];
    let mut loaded = |range: SharedSlice<'_>| written.push((range.pa().raw(), range.len() as u64));
    let write_fdt = |_: &_, scratch: &mut [u8]| {
        scratch.copy_from_slice(&FDT);
        Ok(FDT.len())
    };
    let total = file.len() + modules.ramdisk.map_or(0, |ramdisk| ramdisk.len());
    let mut done = 0;
    let result = loop {
        match copy(&modules, &memory, FDT.len(), done, &mut loaded) {
            Ok(0) => {
                assert_eq!(done, total);
                break finish(&modules, &memory, &mut [0; FDT.len()], write_fdt, &mut loaded);
            }
            Ok(bytes) => {
                done += bytes;
                assert!(bytes <= COPY && done <= total);
            }
            Err(error) => break Err(error),
        }
    };
    if let Err(error) = result {
        assert!(!error.to_string().is_empty());
    }
    match result {
        Ok(placement) => {
            let image = parsed.expect("loaded what is no kernel");
            let kernel = memory.slice(placement.kernel, image.memory as usize);
            assert!(kernel.is_ok(), "the kernel has less memory than it asked for");
            written.sort_unstable();
            assert!(written.is_sorted_by(|a, b| a.0 + a.1 <= b.0), "{written:x?}");
            let tree = memory.slice(placement.fdt, FDT.len()).unwrap();
            let mut read = [0; FDT.len()];
            tree.read_bytes(0, &mut read).unwrap();
            assert_eq!(read, FDT);
        }
        Err(LoadError::Kernel(error)) => assert_eq!(parsed, Err(error)),
        Err(LoadError::TooLarge { needed, ram }) => assert!(needed > ram),
        Err(LoadError::NoRam | LoadError::DeviceTree(_)) => panic!("there is RAM"),
    }
}
