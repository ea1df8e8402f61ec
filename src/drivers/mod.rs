//! Polled drivers for physical devices, over two seams: registers and DMA memory.
