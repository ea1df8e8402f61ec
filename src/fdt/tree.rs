//! A device tree blob, read in place. Only [`check`](super::check) makes one, of what it has checked from
//! end to end: here nothing is refused any more, and what cannot be is empty.

use super::check::{BEGIN_NODE, NOP, PROP, word};
use crate::memory::PaRange;

/// A tree that was checked (Devicetree Specification 5).
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree<'a> {
    pub(super) blob: &'a [u8],
    /// Where its blocks begin.
    pub(super) structure: usize,
    pub(super) strings: usize,
    pub(super) reservations: usize,
}

/// A node of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    tree: Tree<'a>,
    name: &'a [u8],
    /// Behind its name.
    body: usize,
}

/// What is in the structure block.
enum Token<'a> {
    Begin(Node<'a>),
    Property(&'a [u8], &'a [u8]),
    Nop,
    End,
}

fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or_default()
}

impl<'a> Tree<'a> {
    pub(super) fn root(self) -> Node<'a> {
        match self.token(self.structure) {
            (Token::Begin(root), _) => root,
            _ => Node { tree: self, name: &[], body: self.blob.len() },
        }
    }

    /// The ranges in the list of reservations, which ends with an entry of zeroes.
    pub(super) fn reservations(self) -> impl Iterator<Item = PaRange> + 'a {
        let entries = self.blob.get(self.reservations..).unwrap_or_default().chunks_exact(16);
        entries.take_while(|entry| entry.iter().any(|byte| *byte != 0)).filter_map(|entry| {
            let (base, len) = entry.split_first_chunk()?;
            let len = u64::from_be_bytes(*len.first_chunk()?);
            Some(PaRange::new(u64::from_be_bytes(*base), len))
        })
    }

    fn word(self, at: usize) -> usize {
        word(self.blob, at).unwrap_or(0) as usize
    }

    /// The bytes up to the next zero.
    fn name(self, at: usize) -> &'a [u8] {
        let bytes = self.blob.get(at..).unwrap_or_default();
        let len = bytes.iter().position(|byte| *byte == 0);
        len.and_then(|len| bytes.get(..len)).unwrap_or_default()
    }

    /// What is at `at`, and where the next begins.
    #[inline(never)]
    fn token(self, at: usize) -> (Token<'a>, usize) {
        let (token, end) = match self.word(at) as u32 {
            BEGIN_NODE => {
                let name = self.name(at + 4);
                let end = at + 4 + name.len() + 1;
                let body = end.next_multiple_of(4);
                (Token::Begin(Node { tree: self, name, body }), end)
            }
            PROP => {
                let (start, len) = (at + 12, self.word(at + 4));
                let value = self.blob.get(start..start + len).unwrap_or_default();
                (Token::Property(self.name(self.strings + self.word(at + 8)), value), start + len)
            }
            NOP => (Token::Nop, at + 4),
            _ => (Token::End, at + 4),
        };
        (token, end.next_multiple_of(4))
    }
}

impl<'a> Node<'a> {
    pub(super) fn name(self) -> &'a str {
        text(self.name)
    }

    /// Names and values.
    pub(super) fn properties(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let mut at = self.body;
        core::iter::from_fn(move || {
            loop {
                let (token, next) = self.tree.token(at);
                at = next;
                match token {
                    Token::Property(name, value) => return Some((text(name), value)),
                    Token::Nop => (),
                    _ => return None,
                }
            }
        })
    }

    #[inline(never)]
    pub(super) fn property(self, wanted: &str) -> Option<&'a [u8]> {
        let mut at = self.body;
        loop {
            let (token, next) = self.tree.token(at);
            at = next;
            match token {
                Token::Property(name, value) if name == wanted.as_bytes() => return Some(value),
                Token::Property(..) | Token::Nop => (),
                _ => return None,
            }
        }
    }

    pub(super) fn children(self) -> impl Iterator<Item = Self> {
        let mut at = self.body;
        core::iter::from_fn(move || self.next_child(&mut at))
    }

    /// The child that begins at `at`, or behind it, which moves behind the child.
    #[inline(never)]
    fn next_child(self, at: &mut usize) -> Option<Self> {
        let mut depth = 0;
        let mut child = None;
        loop {
            let (token, next) = self.tree.token(*at);
            match token {
                Token::Begin(node) => {
                    child = child.or(Some(node));
                    depth += 1;
                }
                // The end of this node is left to be found again.
                Token::End if depth == 0 => return None,
                Token::End => depth -= 1,
                _ => (),
            }
            *at = next;
            if depth == 0 && child.is_some() {
                return child;
            }
        }
    }

    /// The first child of this name; one without unit address fits any.
    pub(super) fn child(self, wanted: &str) -> Option<Self> {
        let fits = |node: &Self| {
            let rest = node.name.strip_prefix(wanted.as_bytes());
            rest.is_some_and(|rest| {
                rest.is_empty() || rest.starts_with(b"@") && !wanted.contains('@')
            })
        };
        self.children().find(fits)
    }
}
