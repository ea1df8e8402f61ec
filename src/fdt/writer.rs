//! Writes a flattened device tree, version 17, into a byte slice (Devicetree Specification v0.4,
//! chapter 5).

use core::fmt::{self, Write};

use crate::memory::{PaRange, copy};

/// Bytes that the names of all different properties together can have, each with its end.
const STRINGS: usize = 1024;

/// Nodes inside each other that can be open at once.
const MAX_DEPTH: usize = 16;

const HEADER_LEN: usize = 40;
const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
const LAST_COMPATIBLE_VERSION: u32 = 16;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;

/// Why a tree could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The buffer, or the room for property names, is full.
    Full,
    /// Calls in an order that makes no tree: a property behind a subnode, a second root, nodes
    /// left open or closed twice, nodes nested too deeply.
    Order,
    /// A string with a zero byte inside.
    Text,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "device tree: no room left",
            Self::Order => "device tree: nodes and properties in an impossible order",
            Self::Text => "device tree: a string has a zero byte inside",
        })
    }
}

/// A device tree in the making. After an error the tree is not to be used.
pub struct FdtWriter<'b> {
    buffer: &'b mut [u8],
    at: usize,
    structure: usize,
    depth: usize,
    properties_allowed: bool,
    strings: heapless::Vec<u8, STRINGS>,
}

impl<'b> FdtWriter<'b> {
    /// Starts a tree in `buffer`, with `reservations` in its memory reservation block.
    ///
    /// # Errors
    /// [`WriteError::Full`].
    pub fn new(buffer: &'b mut [u8], reservations: &[PaRange]) -> Result<Self, WriteError> {
        let mut writer = Self {
            buffer,
            at: HEADER_LEN,
            structure: 0,
            depth: 0,
            properties_allowed: false,
            strings: heapless::Vec::new(),
        };
        for range in reservations.iter().filter(|range| !range.is_empty()) {
            writer.put(&range.base.raw().to_be_bytes())?;
            writer.put(&range.len.to_be_bytes())?;
        }
        writer.put(&[0; 16])?;
        writer.structure = writer.at;
        Ok(writer)
    }

    /// Opens a node, with its unit address if it has one; the first is the root, named "".
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn begin_node(&mut self, name: impl fmt::Display) -> Result<(), WriteError> {
        let second_root = self.depth == 0 && self.at != self.structure;
        if second_root || self.depth == MAX_DEPTH {
            return Err(WriteError::Order);
        }
        self.depth += 1;
        self.properties_allowed = true;
        self.put_u32(BEGIN_NODE)?;
        let mut text = Text { writer: self, result: Ok(()) };
        // The reason is in the result, which says more.
        let _ = write!(text, "{name}");
        text.result?;
        self.put(&[0])?;
        self.pad()
    }

    /// Closes the node opened last.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn end_node(&mut self) -> Result<(), WriteError> {
        self.depth = self.depth.checked_sub(1).ok_or(WriteError::Order)?;
        self.properties_allowed = false;
        self.put_u32(END_NODE)
    }

    /// Gives the open node a property of any bytes.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn bytes(&mut self, name: &str, value: &[u8]) -> Result<(), WriteError> {
        self.property(name, |writer| writer.put(value))
    }

    /// A property whose being there says all.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn empty(&mut self, name: &str) -> Result<(), WriteError> {
        self.bytes(name, &[])
    }

    /// A property of one cell.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn u32(&mut self, name: &str, value: u32) -> Result<(), WriteError> {
        self.bytes(name, &value.to_be_bytes())
    }

    /// A property of one number in two cells.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn u64(&mut self, name: &str, value: u64) -> Result<(), WriteError> {
        self.bytes(name, &value.to_be_bytes())
    }

    /// A property of cells.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn cells(&mut self, name: &str, values: &[u32]) -> Result<(), WriteError> {
        self.property(name, |writer| values.iter().try_for_each(|value| writer.put_u32(*value)))
    }

    /// A property of numbers of two cells each, such as `reg` where both kinds of cells are 2.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn u64s(&mut self, name: &str, values: &[u64]) -> Result<(), WriteError> {
        self.property(name, |writer| {
            values.iter().try_for_each(|value| writer.put(&value.to_be_bytes()))
        })
    }

    /// A property of one string.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn str(&mut self, name: &str, value: &str) -> Result<(), WriteError> {
        self.strs(name, &[value])
    }

    /// A property of a list of strings.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn strs(&mut self, name: &str, values: &[&str]) -> Result<(), WriteError> {
        self.property(name, |writer| {
            values.iter().try_for_each(|value| {
                writer.put_text(value)?;
                writer.put(&[0])
            })
        })
    }

    /// A property whose value is one string with `text` in it, such as a path.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn formatted(&mut self, name: &str, text: fmt::Arguments<'_>) -> Result<(), WriteError> {
        self.property(name, |writer| {
            let mut out = Text { writer, result: Ok(()) };
            // The reason is in the result, which says more.
            let _ = out.write_fmt(text);
            out.result?;
            writer.put(&[0])
        })
    }

    /// Completes the tree and says how many bytes of the buffer it takes.
    ///
    /// # Errors
    /// [`WriteError::Order`] unless there is a root and all nodes are closed;
    /// [`WriteError::Full`].
    pub fn finish(mut self) -> Result<usize, WriteError> {
        if self.depth != 0 || self.at == self.structure {
            return Err(WriteError::Order);
        }
        self.put_u32(END)?;
        let strings_at = self.at;
        let strings = core::mem::take(&mut self.strings);
        self.put(&strings)?;
        let size = self.at;
        let header = [
            MAGIC,
            size as u32,
            self.structure as u32,
            strings_at as u32,
            HEADER_LEN as u32,
            VERSION,
            LAST_COMPATIBLE_VERSION,
            0, // boot_cpuid_phys
            strings.len() as u32,
            (strings_at - self.structure) as u32,
        ];
        self.at = 0;
        for word in header {
            self.put_u32(word)?;
        }
        Ok(size)
    }

    /// Writes a property's header, its value by `value`, and then its length.
    fn property(
        &mut self,
        name: &str,
        value: impl FnOnce(&mut Self) -> Result<(), WriteError>,
    ) -> Result<(), WriteError> {
        if !self.properties_allowed {
            return Err(WriteError::Order);
        }
        let name = self.intern(name)?;
        self.put_u32(PROP)?;
        let len_at = self.at;
        self.put_u32(0)?;
        self.put_u32(name)?;
        let start = self.at;
        value(self)?;
        let end = self.at;
        self.at = len_at;
        self.put_u32((end - start) as u32)?;
        self.at = end;
        self.pad()
    }

    /// The offset of `name` in the strings block, where it is put once.
    fn intern(&mut self, name: &str) -> Result<u32, WriteError> {
        if name.bytes().any(|byte| byte == 0) {
            return Err(WriteError::Text);
        }
        let mut offset = 0;
        for string in self.strings.split_inclusive(|byte| *byte == 0) {
            if string.strip_suffix(&[0]) == Some(name.as_bytes()) {
                return Ok(offset as u32);
            }
            offset += string.len();
        }
        self.strings.extend_from_slice(name.as_bytes()).map_err(|_| WriteError::Full)?;
        self.strings.push(0).map_err(|_| WriteError::Full)?;
        Ok(offset as u32)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let room = self.buffer.get_mut(self.at..).unwrap_or_default();
        copy(room.get_mut(..bytes.len()).ok_or(WriteError::Full)?, bytes);
        self.at += bytes.len();
        Ok(())
    }

    fn put_u32(&mut self, word: u32) -> Result<(), WriteError> {
        self.put(&word.to_be_bytes())
    }

    fn put_text(&mut self, text: &str) -> Result<(), WriteError> {
        if text.bytes().any(|byte| byte == 0) {
            return Err(WriteError::Text);
        }
        self.put(text.as_bytes())
    }

    /// Tokens are aligned to 4 bytes.
    fn pad(&mut self) -> Result<(), WriteError> {
        let padding = self.at.next_multiple_of(4) - self.at;
        self.put([0; 3].get(..padding).unwrap_or_default())
    }
}

/// Formatted text on its way into the tree, with the reason if it could not be written.
struct Text<'w, 'b> {
    writer: &'w mut FdtWriter<'b>,
    result: Result<(), WriteError>,
}

impl Write for Text<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.result = self.writer.put_text(text);
        self.result.map_err(|_| fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    use super::*;

    fn sample(buffer: &mut [u8]) -> Result<usize, WriteError> {
        let mut writer = FdtWriter::new(buffer, &[PaRange::new(0x1000, 0x234)])?;
        writer.begin_node("")?;
        writer.u32("number", 7)?;
        writer.u64("big", 0x1_0000_0002)?;
        writer.begin_node(format_args!("child@{:x}", 0xab000))?;
        writer.str("text", "hello")?;
        writer.strs("list", &["one", "", "three"])?;
        writer.cells("cells", &[1, 2, 3])?;
        writer.u64s("pairs", &[4, 5])?;
        writer.formatted("path", format_args!("/child@{:x}", 0xab000))?;
        writer.empty("flag")?;
        writer.begin_node("grandchild")?;
        writer.bytes("number", &[1, 2, 3, 4, 5])?;
        writer.end_node()?;
        writer.end_node()?;
        writer.begin_node("second")?;
        writer.end_node()?;
        writer.end_node()?;
        writer.finish()
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let mut buffer = [0xee; 1024];
        let size = sample(&mut buffer).unwrap();
        let fdt = Fdt::new(&buffer[..size]).unwrap();
        let reserved: Vec<_> =
            fdt.memory_reservations().map(|entry| (entry.address(), entry.size())).collect();
        assert_eq!(reserved, [(0x1000, 0x234)]);
        let value = |path: &str, name: &str| {
            fdt.find_node(path).unwrap().property(name).unwrap().value().to_vec()
        };
        assert_eq!(value("/", "number"), [0, 0, 0, 7]);
        assert_eq!(value("/", "big"), [0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(value("/child@ab000", "text"), b"hello\0");
        assert_eq!(value("/child@ab000", "list"), b"one\0\0three\0");
        assert_eq!(value("/child@ab000", "cells"), [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]);
        assert_eq!(
            value("/child@ab000", "pairs"),
            [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5]
        );
        assert_eq!(value("/child@ab000", "path"), b"/child@ab000\0");
        assert_eq!(value("/child@ab000", "flag"), b"");
        assert_eq!(value("/child@ab000/grandchild", "number"), [1, 2, 3, 4, 5]);
        assert!(fdt.find_node("/second").is_some());
    }

    #[test]
    fn a_property_name_is_stored_once() {
        let mut buffer = [0; 1024];
        let size = sample(&mut buffer).unwrap();
        let found = buffer[..size].windows(7).filter(|window| window == b"number\0").count();
        assert_eq!(found, 1);
    }

    #[test]
    fn a_name_that_ends_another_is_not_taken_for_it() {
        let mut buffer = [0; 256];
        let mut writer = FdtWriter::new(&mut buffer, &[]).unwrap();
        writer.begin_node("").unwrap();
        writer.u32("ab", 1).unwrap();
        writer.u32("b", 2).unwrap();
        writer.u32("ab", 3).unwrap();
        writer.end_node().unwrap();
        let size = writer.finish().unwrap();
        let fdt = Fdt::new(&buffer[..size]).unwrap();
        let root = fdt.root();
        let names: Vec<_> = root.properties().map(|property| property.name().to_owned()).collect();
        assert_eq!(names, ["ab", "b", "ab"]);
    }

    #[test]
    fn a_buffer_of_any_smaller_size_is_full() {
        let mut buffer = [0; 1024];
        let size = sample(&mut buffer).unwrap();
        for len in 0..size {
            assert_eq!(sample(&mut buffer[..len]), Err(WriteError::Full), "{len}");
        }
        assert_eq!(sample(&mut buffer[..size]), Ok(size));
    }

    #[test]
    fn too_many_names_are_refused() {
        let mut buffer = [0; 0x10000];
        let mut writer = FdtWriter::new(&mut buffer, &[]).unwrap();
        writer.begin_node("").unwrap();
        let full = (0..1000).find_map(|n| writer.empty(&format!("name-{n}")).err());
        assert_eq!(full, Some(WriteError::Full));
    }

    #[test]
    fn an_impossible_order_is_refused() {
        let start = |nodes: usize| {
            let mut writer = FdtWriter::new(vec![0; 1024].leak(), &[]).unwrap();
            (0..nodes).for_each(|_| writer.begin_node("").unwrap());
            writer
        };
        assert_eq!(start(0).end_node(), Err(WriteError::Order));
        assert_eq!(start(0).empty("property"), Err(WriteError::Order));
        assert_eq!(start(0).finish(), Err(WriteError::Order));
        assert_eq!(start(1).finish(), Err(WriteError::Order));
        let mut writer = start(2);
        writer.end_node().unwrap();
        assert_eq!(writer.empty("property"), Err(WriteError::Order));
        writer.end_node().unwrap();
        assert_eq!(writer.begin_node("second"), Err(WriteError::Order));
        assert_eq!(start(MAX_DEPTH).begin_node("deeper"), Err(WriteError::Order));
    }

    #[test]
    fn a_zero_byte_in_a_string_is_refused() {
        let mut buffer = [0; 1024];
        let mut writer = FdtWriter::new(&mut buffer, &[]).unwrap();
        writer.begin_node("").unwrap();
        assert_eq!(writer.str("bootargs", "a\0b"), Err(WriteError::Text));
        assert_eq!(writer.empty("a\0b"), Err(WriteError::Text));
        assert_eq!(writer.begin_node("a\0b"), Err(WriteError::Text));
    }
}
