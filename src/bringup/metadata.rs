//! The metadata service of a network device, if this image has it.
#![allow(unsafe_code)]

#[cfg(not(feature = "metadata"))]
pub(super) use absent::*;
#[cfg(feature = "metadata")]
pub(super) use present::*;

/// A port of a network, as a device has it.
type Backend = dyn sparkler::backend::net::NetBackend<'static>;

#[cfg(feature = "metadata")]
mod present {
    use sparkler::arch::cache;
    use sparkler::arch::timer::Counter;
    use sparkler::backend::clock::Clock;
    use sparkler::backend::metadata::{Archive, Memory, Metadata};
    use sparkler::memory::PaRange;

    use super::super::arena::{place, place_each};
    use super::Backend;

    /// What is served.
    pub(in super::super) type Content = Archive<'static>;

    /// Looks through an archive that a boot loader has put there; or the reason why it is not served.
    pub(in super::super) fn open(range: PaRange) -> Result<Content, &'static str> {
        // SAFETY: checked to be RAM that overlaps nothing but what is the same, and only ever read.
        let bytes = unsafe { cache::shared_ram(range.base, range.len) };
        let bytes = bytes.map_err(|_| "EL2 cannot map its metadata")?;
        Archive::new(bytes).map_err(|error| error.reason())
    }

    /// Puts the service in front of a port. `None` if EL2 has too little memory.
    #[inline(never)]
    pub(in super::super) fn serve(
        content: Content,
        port: &'static mut Backend,
    ) -> Option<&'static mut Backend> {
        let connections = place_each(Memory::CONNECTIONS, || Memory::NO_CONNECTION)?;
        let buffers = place_each(Memory::BUFFERS, || 0)?;
        let memory = Memory { connections, buffers };
        let (seed, frequency) = (Counter.now().0, Counter.frequency());
        let service = Metadata::new(port, content, seed, frequency, memory)?;
        Some(place(|| service)?)
    }
}

#[cfg(not(feature = "metadata"))]
mod absent {
    use sparkler::memory::PaRange;

    use super::Backend;

    /// There is none: VMs that want it were refused.
    #[derive(Clone, Copy)]
    pub(in super::super) enum Content {}

    pub(in super::super) fn open(_: PaRange) -> Result<Content, &'static str> {
        Err("this image has no metadata service")
    }

    pub(in super::super) fn serve(
        content: Content,
        _: &'static mut Backend,
    ) -> Option<&'static mut Backend> {
        match content {}
    }
}
