use std::fmt::Write;

use proptest::prelude::*;

use super::testing::Terminal;
use super::*;

const HERTZ: u32 = 1000;
const KEY: u8 = 0x1D;

/// A console with guests called `a`, `b`, and so on, and its terminal.
struct Bench {
    mux: Mux,
    terminal: Terminal,
    now: u64,
}

fn bench(guests: usize, colours: bool) -> Bench {
    let mut mux = Mux::new();
    let settings = Settings::new(Frequency::new(HERTZ).unwrap());
    mux.configure(Settings { colours, ..settings });
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().take(guests) {
        mux.add_guest(name).unwrap();
    }
    Bench { mux, terminal: Terminal::default(), now: 0 }
}

impl Bench {
    fn says(&mut self, guest: usize, text: &[u8]) {
        for byte in text {
            let _ = self.mux.output(guest, *byte, &mut self.terminal);
        }
    }

    /// Time goes by.
    fn wait(&mut self, milliseconds: u64) -> Option<u64> {
        self.now += milliseconds;
        self.mux.tick(Ticks(self.now), &mut self.terminal).map(|at| at.0)
    }

    /// Everybody has been silent for long.
    fn settle(&mut self) {
        for _ in 0..100 {
            if self.wait(100).is_none() {
                return;
            }
        }
        panic!("it never settles");
    }

    fn logs(&mut self, text: &str) {
        write!(self.mux.log(&mut self.terminal), "{text}").unwrap();
    }

    fn types(&mut self, bytes: &[u8]) -> Vec<Input> {
        let inputs = bytes.iter().map(|byte| self.mux.input(*byte, &mut self.terminal));
        inputs.filter(|input| *input != Input::Nothing).collect()
    }

    fn shown(&mut self) -> String {
        self.terminal.take()
    }
}

fn to(guest: usize, bytes: &[u8]) -> Vec<Input> {
    bytes.iter().map(|byte| Input::Guest { guest, byte: *byte }).collect()
}

#[test]
fn a_single_guest_has_the_terminal_as_if_it_were_alone() {
    let mut bench = bench(1, true);
    let bytes: Vec<u8> = (0..=255).chain(*b"\x1b[2Jlogin: ").collect();
    for byte in &bytes {
        assert!(!bench.mux.output(0, *byte, &mut bench.terminal));
        assert_eq!(bench.terminal.0.last(), Some(byte), "at once");
    }
    assert_eq!(bench.terminal.0, bytes);
    assert_eq!(bench.wait(1000), None);
    assert_eq!(bench.types(b"ls\r\x00\xff"), to(0, b"ls\r\x00\xff"));
    assert_eq!(bench.terminal.0, bytes);
}

#[test]
fn of_several_guests_lines_are_shown_whole_with_their_names() {
    let mut bench = bench(2, false);
    bench.says(0, b"hel");
    bench.says(1, b"good ");
    bench.says(0, b"lo\r\n");
    bench.says(1, b"bye\n\n");
    assert_eq!(bench.shown(), "a| hello\r\nb| good bye\r\nb| \r\n");
}

#[test]
fn names_have_colours_unless_they_are_turned_off() {
    let mut bench = bench(2, true);
    bench.says(1, b"x\n");
    assert_eq!(bench.shown(), "\x1b[33mb|\x1b[0m x\r\n");
}

#[test]
fn a_prompt_is_shown_when_its_guest_is_silent_and_then_echoes() {
    let mut bench = bench(2, false);
    assert!(bench.mux.output(0, b'#', &mut bench.terminal), "a tick is asked for");
    assert!(!bench.mux.output(0, b' ', &mut bench.terminal), "once");
    assert_eq!(bench.wait(1), Some(51), "it is not silent yet");
    assert_eq!(bench.shown(), "");
    assert_eq!(bench.wait(50), None);
    assert_eq!(bench.shown(), "a| # ");
    bench.says(0, b"ls");
    assert_eq!(bench.shown(), "ls");
    bench.says(0, b"\r\nbin\r\n");
    assert_eq!(bench.shown(), "\r\na| bin\r\n");
}

#[test]
fn an_unfinished_line_that_was_interrupted_is_shown_again_from_its_beginning() {
    let mut bench = bench(2, false);
    bench.says(0, b"# ");
    bench.settle();
    bench.says(1, b"boot\n");
    bench.says(0, b"ls\n");
    assert_eq!(bench.shown(), "a| # \r\nb| boot\r\na| # ls\r\n");
}

#[test]
fn an_interrupted_prompt_comes_back_only_where_somebody_types() {
    for (colours, back) in [(false, ""), (true, "# ")] {
        let mut bench = bench(2, colours);
        bench.says(0, b"# ");
        bench.settle();
        bench.says(1, b"boot\n");
        bench.shown();
        bench.settle();
        assert!(bench.shown().ends_with(back));
        assert_eq!(bench.wait(1000), None);
        assert_eq!(bench.shown(), "");
    }
}

#[test]
fn two_prompts_are_each_shown_once_and_the_one_typed_to_last() {
    let mut bench = bench(3, true);
    bench.says(1, b"one# ");
    bench.says(0, b"zero# ");
    bench.says(2, b"two# ");
    bench.settle();
    let shown = bench.shown();
    assert_eq!(shown.matches("# ").count(), 3, "{shown}");
    assert!(shown.ends_with("zero# "), "{shown}");
    assert_eq!(bench.wait(1000), None);
    assert_eq!(bench.shown(), "");
}

#[test]
fn a_long_line_is_not_cut_unless_somebody_else_has_a_line() {
    let mut bench = bench(2, false);
    let long = "x".repeat(1000);
    bench.says(0, long.as_bytes());
    bench.says(0, b"\n");
    assert_eq!(bench.shown(), format!("a| {long}\r\n"));
    bench.says(0, &[b'y'; LINE_LEN + 2]);
    bench.says(1, b"boot\n");
    bench.says(0, b"z\n");
    let full = "y".repeat(LINE_LEN);
    assert_eq!(bench.shown(), format!("a| {full}yy\r\nb| boot\r\na| yyz\r\n"));
}

#[test]
fn a_guest_cannot_speak_in_anothers_name() {
    let mut bench = bench(2, false);
    bench.says(
        0,
        b"x\rb| fake\n\x1b[1A\x1b[Gb| fake\n\x08\x08\x08b| fake\n\x9b2K\xc2\x9b2K\x1bcb| fake\n",
    );
    let shown = bench.shown();
    assert!(shown.split_terminator("\r\n").all(|line| line.starts_with("a| ")), "{shown}");
    assert!(shown.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\r' | b'\n')), "{shown}");
}

#[test]
fn a_backspace_goes_no_further_than_the_line() {
    let mut bench = bench(2, false);
    bench.says(0, b"# l");
    bench.settle();
    bench.says(0, b"\x08\x08\x08\x08\x08");
    assert_eq!(bench.shown(), "a| # l\x08 \x08\x08 \x08\x08 \x08");
}

#[test]
fn the_log_is_between_lines_whatever_is_shown() {
    let mut bench = bench(2, false);
    bench.says(0, b"# ");
    bench.settle();
    bench.logs("all");
    bench.says(0, b"x\n");
    assert_eq!(bench.shown(), "a| # \r\nall\r\na| # x\r\n");

    bench.says(0, b"login: ");
    bench.mux.attach(0, &mut bench.terminal);
    bench.shown();
    bench.logs("raw");
    bench.says(0, b"root\n");
    bench.logs("fresh");
    assert_eq!(bench.shown(), "\r\nraw\r\nlogin: root\nfresh\r\n");

    bench.types(&[KEY, b'm']);
    bench.types(b"vm");
    bench.shown();
    bench.logs("monitor");
    assert_eq!(bench.shown(), "\r\nmonitor\r\nsparkler> vm");
    assert_eq!(bench.types(b"s\r").len(), 1);
    bench.shown();
    bench.logs("busy");
    assert_eq!(bench.shown(), "busy\r\n");
}

#[test]
fn the_log_is_kept() {
    let mut bench = bench(1, false);
    bench.logs("one");
    bench.logs(&"2".repeat(LOG_LEN - 4));
    let mut text = [0; LOG_LEN];
    let (len, next) = bench.mux.read_log(0, &mut text);
    assert!(text[..len].starts_with(b"ne\n22"), "the oldest byte made room");
    assert!(text[..len].ends_with(b"2\n"));
    assert_eq!(next, bench.mux.log_written());
    assert_eq!(bench.mux.read_log(next, &mut text), (0, next));
    assert_eq!(bench.mux.read_log(next - 2, &mut text), (2, next));
}

#[test]
fn the_escape_key_switches_and_twice_it_is_the_guests() {
    let mut bench = bench(2, false);
    assert_eq!(bench.types(b"x"), to(0, b"x"));
    assert_eq!(bench.types(&[KEY, b'2']), []);
    assert_eq!(bench.mux.view(), View::Raw(1));
    assert_eq!(bench.types(&[b'y', KEY, KEY, b'z']), to(1, &[b'y', KEY, b'z']));
    assert_eq!(bench.types(&[KEY, b'a', b'x']), to(1, b"x"), "the last one attached");
    assert_eq!(bench.mux.view(), View::All);
    // What means nothing changes nothing.
    assert_eq!(bench.types(&[KEY, b'8', KEY, b'0', KEY, b'9', KEY, 0xFF]), []);
    assert_eq!(bench.mux.view(), View::All);
    bench.shown();
    assert_eq!(bench.types(&[KEY, b'?']), []);
    assert!(bench.shown().contains("monitor"));
    assert_eq!(bench.types(&[KEY, b'm']), []);
    assert_eq!(bench.mux.view(), View::Monitor);
    // To the monitor it is nothing.
    assert_eq!(bench.types(&[KEY, KEY]), []);
    assert_eq!(bench.mux.view(), View::Monitor);
}

#[test]
fn without_an_escape_key_every_byte_is_the_guests() {
    let mut bench = bench(1, false);
    let settings = Settings::new(Frequency::new(HERTZ).unwrap());
    bench.mux.configure(Settings { escape: None, ..settings });
    assert_eq!(bench.types(&[KEY, b'm', 0]), to(0, &[KEY, b'm', 0]));
}

#[test]
fn the_monitor_gets_lines_and_its_output_the_terminal() {
    let mut bench = bench(2, false);
    bench.types(&[KEY, b'm']);
    assert!(bench.shown().ends_with("\r\nsparkler> "));
    let [Input::Command(line)] = &bench.types(b"vms\r")[..] else { panic!("no command") };
    assert_eq!(line, b"vms");
    assert_eq!(bench.types(b"ignored while it is busy\r"), []);
    bench.says(0, b"not shown\n");
    writeln!(bench.mux.terminal(&mut bench.terminal), "a running").unwrap();
    bench.mux.prompt(&mut bench.terminal);
    assert_eq!(bench.shown(), "vms\r\na running\r\nsparkler> ");
    bench.mux.quit(&mut bench.terminal);
    assert_eq!(bench.mux.view(), View::All);
    bench.shown();
    write!(bench.mux.terminal(&mut bench.terminal), "too late").unwrap();
    bench.mux.prompt(&mut bench.terminal);
    assert_eq!(bench.shown(), "");
}

#[test]
fn leaving_the_monitor_of_a_single_guest_is_back_to_it() {
    let mut bench = bench(1, true);
    bench.says(0, b"# ");
    bench.types(&[KEY, b'm']);
    bench.mux.quit(&mut bench.terminal);
    assert_eq!(bench.mux.view(), View::Raw(0));
    assert!(bench.shown().ends_with("# "));
}

#[test]
fn back_in_the_view_of_all_prompts_are_shown() {
    let mut bench = bench(2, false);
    bench.mux.attach(0, &mut bench.terminal);
    bench.says(1, b"old\nlogi\x1b[32mm\x08n: ");
    bench.mux.show_all(&mut bench.terminal);
    bench.shown();
    bench.settle();
    assert_eq!(bench.shown(), "b| login: ");
}

#[test]
fn a_guest_that_talks_during_its_replay_is_shown_in_order() {
    let mut bench = bench(2, false);
    let old: Vec<u8> = (0..3000u32).map(|n| b'a' + (n % 26) as u8).collect();
    bench.says(1, &old);
    bench.mux.attach(1, &mut bench.terminal);
    let new = [b'!'; 2000];
    bench.says(1, &new);
    bench.settle();
    let expected = [&old[..], &new].concat();
    assert!(bench.terminal.0.ends_with(&expected));
}

#[test]
fn input_waits_a_second_for_its_guest_and_is_then_lost() {
    let mut bench = bench(1, false);
    assert_eq!(bench.mux.take_held(), None);
    assert!(bench.mux.hold(0, b'x', Ticks(5)));
    assert_eq!(bench.mux.take_held(), Some((0, b'x')));
    assert!(bench.mux.hold(0, b'x', Ticks(1004)));
    assert_eq!(bench.mux.take_held(), Some((0, b'x')));
    assert!(!bench.mux.hold(0, b'x', Ticks(1005)));
    assert_eq!(bench.mux.take_held(), None);
    assert!(!bench.mux.hold(0, b'y', Ticks(1006)), "what follows does not wait as well");
    bench.mux.delivered();
    assert!(bench.mux.hold(0, b'z', Ticks(1007)));
}

#[test]
fn names_are_cut_and_cleaned_and_guests_are_limited() {
    let mut mux = Mux::new();
    assert_eq!(mux.add_guest("a|b \x1b\u{e9}_this_is_long"), Some(0));
    mux.add_guest("b");
    let mut terminal = Terminal::default();
    let _ = mux.output(0, b'\n', &mut terminal);
    assert_eq!(terminal.text(), "a?b???_this_is_| \r\n");
    for number in 2..MAX_GUESTS {
        assert_eq!(mux.add_guest("x"), Some(number));
    }
    assert_eq!(mux.add_guest("x"), None);
    assert!(!mux.output(MAX_GUESTS, b'x', &mut terminal));
    assert!(!mux.attach(MAX_GUESTS, &mut terminal));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Guests' bytes, ticks and log lines in any order: every line on the terminal is one
    /// guest's, or the log's; the complete lines of each guest are all there, in order.
    #[test]
    fn lines_are_never_mixed_and_none_is_lost(
        steps in prop::collection::vec((0..5usize, 0..40usize), 1..400),
        colours in any::<bool>(),
    ) {
        let mut bench = bench(3, colours);
        let mut said = [const { String::new() }; 3];
        let (mut lines, mut serial) = (0, 0);
        for (who, what) in steps {
            match who {
                0..3 => {
                    // Each guest has letters of its own.
                    let text = match what {
                        // Each line differs from all others.
                        0..6 => {
                            lines += 1;
                            format!("{lines}\n")
                        }
                        6 => " ".to_owned(),
                        _ => ["a", "b", "c"][who].to_owned(),
                    };
                    said[who].push_str(&text);
                    bench.says(who, text.as_bytes());
                }
                3 => { bench.wait(what as u64 * 4); }
                _ => {
                    serial += 1;
                    bench.logs(&format!("[log] {serial}"));
                }
            }
        }
        bench.settle();
        let shown = bench.shown();
        let shown = ["32", "33", "36", "0"]
            .iter()
            .fold(shown, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        let mut complete = [const { Vec::<String>::new() }; 3];
        let mut logged = 0;
        for line in shown.split("\r\n") {
            if line.is_empty() {
                continue;
            }
            if let Some(number) = line.strip_prefix("[log] ") {
                logged += 1;
                prop_assert_eq!(number, logged.to_string());
                continue;
            }
            let (name, text) = line.split_once("| ").unwrap();
            let who = usize::from(name.as_bytes()[0] - b'a');
            let letters = text.bytes().filter(u8::is_ascii_alphabetic);
            prop_assert!(letters.into_iter().all(|byte| byte == b"abc"[who]), "{line}");
            complete[who].push(text.to_owned());
        }
        prop_assert_eq!(logged, serial);
        for who in 0..3 {
            // Shown are the lines, before one that was interrupted beginnings of it, and for
            // whoever types there a line that was only to be ended once more.
            let (mut shown, mut last) = (complete[who].iter(), "");
            for line in said[who].split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let line = line.trim_end_matches('\n');
                let beginning = |text: &&String| line != **text && (line.starts_with(text.as_str()) || **text == last);
                let found = shown.find(|text| !beginning(text));
                prop_assert_eq!(found.map(String::as_str), Some(line), "of {}", who);
                last = line;
            }
        }
    }

    #[test]
    fn a_replay_is_the_last_output(
        before in prop::collection::vec(any::<u8>(), 0..6000),
        after in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bench = bench(2, false);
        bench.says(1, &before);
        bench.terminal.0.clear();
        bench.types(&[KEY, b'2']);
        bench.settle();
        bench.says(1, &after);
        bench.settle();
        let announced = bench.terminal.text().find("console: b\r\n").unwrap() + 12;
        let kept = &before[before.len().saturating_sub(RING_LEN)..];
        prop_assert_eq!(&bench.terminal.0[announced..], &[kept, &after].concat()[..]);
    }

    /// Whatever comes in, and wherever it is cut, the console is as if it came at once.
    #[test]
    fn the_escape_key_works_at_every_split(bytes in prop::collection::vec(
        prop_oneof![Just(KEY), Just(b'1'), Just(b'2'), Just(b'a'), Just(b'm'), Just(b'\r'), any::<u8>()],
        0..40,
    ), interruptions in prop::collection::vec(0..3u8, 40)) {
        let (mut plain, mut cut) = (bench(2, false), bench(2, false));
        for (byte, interruption) in bytes.iter().zip(interruptions) {
            let (expected, got) = (plain.types(&[*byte]), cut.types(&[*byte]));
            prop_assert_eq!(&expected, &got);
            if matches!(expected.first(), Some(Input::Command(_))) {
                plain.mux.prompt(&mut plain.terminal);
                cut.mux.prompt(&mut cut.terminal);
            }
            match interruption {
                0 => cut.says(0, b"noise\n"),
                1 => cut.logs("noise"),
                _ => { cut.wait(60); }
            }
            prop_assert_eq!(plain.mux.view(), cut.mux.view());
        }
    }
}
