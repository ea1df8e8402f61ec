//! Commands, as typed.

use core::fmt;

use log::LevelFilter;

use super::adjust;
use crate::virtio::Adjustment;

/// Words that a command can have after its first one, and one more.
const MAX_WORDS: usize = 7;

/// What is to be done with a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Load it and let it run.
    Start,
    /// Stop it; its memory is forgotten.
    Stop,
    /// Let none of its vCPUs run.
    Pause,
    /// Let them go on.
    Resume,
    /// Stop it and start it.
    Reset,
}

impl Action {
    /// All actions and their words.
    const WORDS: [(&'static str, Self); 5] = [
        ("start", Self::Start),
        ("stop", Self::Stop),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("reset", Self::Reset),
    ];
}

/// A command. Names are as typed; nobody has looked for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Nothing was typed.
    Nothing,
    /// The commands there are.
    Help,
    /// All VMs.
    Vms,
    /// Do something with a VM.
    Vm {
        /// Its name.
        name: &'a str,
        /// What.
        action: Action,
    },
    /// Give the terminal to a VM.
    Attach {
        /// Its name.
        name: &'a str,
    },
    /// All virtual devices.
    Devices,
    /// Change a device of a VM.
    Device {
        /// The VM's name.
        name: &'a str,
        /// Its virtio slot.
        slot: usize,
        /// What is to change.
        change: Adjustment,
    },
    /// Exits and requests of a VM, or of all.
    Stats {
        /// Its name.
        name: Option<&'a str>,
    },
    /// The board's cores.
    Cores,
    /// The board's memory.
    Memory,
    /// What was logged last.
    Log,
    /// What is to be logged from now on.
    LogLevel(LevelFilter),
    /// Leave the monitor.
    Quit,
}

/// Why a line is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError<'a> {
    /// It has bytes that are not printable ASCII.
    NotText,
    /// No command begins with this word.
    Unknown(&'a str),
    /// The command is used like this.
    Usage(&'static str),
}

impl fmt::Display for ParseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotText => f.write_str("a command is printable ASCII"),
            Self::Unknown(word) => write!(f, "no command \"{word}\"; \"help\" lists them"),
            Self::Usage(usage) => write!(f, "usage: {usage}"),
        }
    }
}

impl<'a> Command<'a> {
    /// The command in a line, without its end of line.
    ///
    /// # Errors
    /// If there is none in it.
    pub fn parse(line: &'a [u8]) -> Result<Self, ParseError<'a>> {
        let line = core::str::from_utf8(line).map_err(|_| ParseError::NotText)?;
        if line.bytes().any(|byte| !matches!(byte, b' '..=b'~' | b'\t')) {
            return Err(ParseError::NotText);
        }
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { return Ok(Self::Nothing) };
        let (mut rest, mut count) = ([""; MAX_WORDS], 0);
        for (place, word) in rest.iter_mut().zip(words) {
            *place = word;
            count += 1;
        }
        let rest = rest.get(..count).unwrap_or_default();
        let [second, third] = match rest {
            [] => [None, None],
            [second] => [Some(*second), None],
            [second, third] => [Some(*second), Some(*third)],
            // Of those that begin like this no command has as many words.
            _ => [Some(""), Some("")],
        };
        let alone = |command, usage| match second {
            None => Ok(command),
            Some(_) => Err(ParseError::Usage(usage)),
        };
        match first {
            "help" => alone(Self::Help, "help"),
            "vms" => alone(Self::Vms, "vms"),
            "devices" => alone(Self::Devices, "devices"),
            "cores" => alone(Self::Cores, "cores"),
            "memory" => alone(Self::Memory, "memory"),
            "quit" => alone(Self::Quit, "quit"),
            "vm" => {
                let action = third.and_then(|word| {
                    Action::WORDS.iter().find(|(name, _)| *name == word).map(|(_, action)| *action)
                });
                match (second, action) {
                    (Some(name), Some(action)) => Ok(Self::Vm { name, action }),
                    _ => Err(ParseError::Usage("vm NAME start|stop|pause|resume|reset")),
                }
            }
            "device" => {
                let parsed = match rest {
                    [name, slot, change @ ..] => slot
                        .parse()
                        .ok()
                        .zip(adjust::parse(change))
                        .map(|(slot, change)| Self::Device { name, slot, change }),
                    _ => None,
                };
                parsed.ok_or(ParseError::Usage(adjust::USAGE))
            }
            "attach" => match (second, third) {
                (Some(name), None) => Ok(Self::Attach { name }),
                _ => Err(ParseError::Usage("attach NAME")),
            },
            "stats" => match third {
                None => Ok(Self::Stats { name: second }),
                Some(_) => Err(ParseError::Usage("stats [NAME]")),
            },
            "log" => match (second.map(str::parse), third) {
                (None, _) => Ok(Self::Log),
                (Some(Ok(level)), None) => Ok(Self::LogLevel(level)),
                _ => Err(ParseError::Usage("log [off|error|warn|info|debug|trace]")),
            },
            _ => Err(ParseError::Unknown(first)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str) -> Result<Command<'_>, ParseError<'_>> {
        Command::parse(line.as_bytes())
    }

    #[test]
    fn every_command_is_understood() {
        assert_eq!(parse(""), Ok(Command::Nothing));
        assert_eq!(parse(" \t "), Ok(Command::Nothing));
        assert_eq!(parse("help"), Ok(Command::Help));
        assert_eq!(parse("  vms "), Ok(Command::Vms));
        for (word, action) in Action::WORDS {
            let line = format!("vm  a-b {word}");
            assert_eq!(parse(&line), Ok(Command::Vm { name: "a-b", action }));
        }
        assert_eq!(parse("attach a"), Ok(Command::Attach { name: "a" }));
        assert_eq!(parse("devices"), Ok(Command::Devices));
        let change = Adjustment::Link(false);
        let device = Command::Device { name: "a", slot: 3, change };
        assert_eq!(parse("device a 3 link down"), Ok(device));
        assert_eq!(parse("stats"), Ok(Command::Stats { name: None }));
        assert_eq!(parse("stats a"), Ok(Command::Stats { name: Some("a") }));
        assert_eq!(parse("cores"), Ok(Command::Cores));
        assert_eq!(parse("memory"), Ok(Command::Memory));
        assert_eq!(parse("log"), Ok(Command::Log));
        assert_eq!(parse("log debug"), Ok(Command::LogLevel(LevelFilter::Debug)));
        assert_eq!(parse("quit"), Ok(Command::Quit));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(parse("reboot now"), Err(ParseError::Unknown("reboot")));
        assert_eq!(parse("VMS"), Err(ParseError::Unknown("VMS")));
        assert_eq!(Command::parse(b"vms\x00"), Err(ParseError::NotText));
        assert_eq!(Command::parse("vm \u{e9} stop".as_bytes()), Err(ParseError::NotText));
        assert_eq!(Command::parse(b"\xff"), Err(ParseError::NotText));
        for line in [
            "help x",
            "vms x",
            "vm",
            "vm a",
            "vm stop",
            "vm a stop b",
            "vm a explode",
            "attach",
            "attach a b",
            "devices a",
            "device",
            "device a",
            "device a 0",
            "device a x link up",
            "device a 0 link sideways",
            "device a 0 limit in 1 2 3",
            "device a 0 limit in 1 2 3 4 5",
            "stats a b",
            "stats a b c",
            "cores 1",
            "memory x",
            "log loud",
            "log info x",
            "quit now",
            "log a b c",
        ] {
            assert!(matches!(parse(line), Err(ParseError::Usage(_))), "{line}: {:?}", parse(line));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_command_or_an_error(line in prop::collection::vec(any::<u8>(), 0..140)) {
            if let Err(error) = Command::parse(&line) {
                prop_assert!(!error.to_string().is_empty());
            }
        }

        #[test]
        fn any_words_are_a_command_or_an_error(words in prop::collection::vec(prop::sample::select(
            vec!["help", "vms", "vm", "a", "stop", "start", "attach", "stats", "log", "warn", "quit", "device", "0", "link", "up"],
        ), 0..6)) {
            let line = words.join(" ");
            match parse(&line) {
                Ok(Command::Nothing) => prop_assert!(words.is_empty()),
                Ok(Command::Vm { name, .. }) => prop_assert_eq!((words[0], words[1], words.len()), ("vm", name, 3)),
                Ok(Command::Device { .. }) => prop_assert_eq!(words[0], "device"),
                Ok(_) => prop_assert!(words.len() <= 2),
                Err(_) => prop_assert!(!words.is_empty()),
            }
        }
    }
}
