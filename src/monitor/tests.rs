use proptest::prelude::*;

use super::testing::Fake;
use super::*;

fn answer_of(fake: &mut Fake, line: &str) -> String {
    let mut out = String::new();
    run(line.as_bytes(), fake, &mut out, 8192).unwrap();
    out
}

fn answer(line: &str) -> String {
    answer_of(&mut Fake::default(), line)
}

#[test]
fn the_tables_are_as_documented() {
    let documented = include_str!("../../docs/monitor.md");
    let missing: String = ["help", "vms", "devices", "stats", "cores", "memory"]
        .into_iter()
        .map(answer)
        .filter(|answer| !documented.contains(answer.as_str()))
        .collect();
    assert!(missing.is_empty(), "docs/monitor.md does not have:\n{missing}");
}

#[test]
fn tables_are_aligned() {
    for command in ["vms", "devices", "cores"] {
        let answer = answer(command);
        let lines: Vec<&str> = answer.lines().collect();
        // Where a column of the head ends, one ends in every line, or begins where it begins.
        let head = lines[0];
        for line in &lines[1..] {
            let ends =
                |text: &str, at: usize| text.as_bytes().get(at).is_none_or(|byte| *byte == b' ');
            for (at, _) in head.match_indices(' ').filter(|(at, _)| head.as_bytes()[at - 1] != b' ')
            {
                let start = head.get(..at).unwrap().rfind(' ').map_or(0, |space| space + 1);
                let begins = start == 0 || line.as_bytes()[start - 1] == b' ';
                assert!(ends(line, at) || begins, "{command}:\n{answer}");
            }
        }
    }
}

#[test]
fn stats_can_be_of_one_vm() {
    let all = answer("stats");
    assert_eq!(all.lines().count(), 7);
    let one = answer("stats b-two");
    assert_eq!(one.lines().count(), 2);
    assert!(one.starts_with("b-two boot: lost_mark=0\nb-two vcpu0: call=10 "), "{one}");
    assert!(all.contains(&one));
    assert_eq!(answer("stats x"), "error: no VM \"x\"\n");
}

#[test]
fn latencies_are_in_microseconds() {
    assert!(
        answer("stats a").contains(" mean_us=40 max_us=1000000 latency_us=32:1,65:2,1073741:1 ")
    );
}

#[test]
fn actions_reach_the_vm_that_is_named_and_say_nothing() {
    let mut fake = Fake::default();
    for line in ["vm a pause", "vm b-two start", "attach b-two", "log warn", "quit", ""] {
        assert_eq!(answer_of(&mut fake, line), "", "{line}");
    }
    assert_eq!(fake.done, ["a Pause", "b-two Start", "attach b-two", "log WARN", "quit"]);
}

#[test]
fn a_change_reaches_the_device_that_is_named() {
    let mut fake = Fake::default();
    assert_eq!(answer_of(&mut fake, "device a 0 link down"), "");
    assert_eq!(answer_of(&mut fake, "device a 0 capacity 4096"), "");
    assert_eq!(fake.done, ["a 0 Link(false)", "a 0 Capacity(4096)"]);
}

#[test]
fn what_cannot_be_done_is_an_error_line() {
    let mut fake = Fake::default();
    assert_eq!(answer_of(&mut fake, "vm c stop"), "error: no VM \"c\"\n");
    assert_eq!(answer_of(&mut fake, "attach c"), "error: no VM \"c\"\n");
    assert_eq!(
        answer_of(&mut fake, "vm a"),
        "error: usage: vm NAME start|stop|pause|resume|reset\n"
    );
    assert_eq!(answer_of(&mut fake, "ls"), "error: no command \"ls\"; \"help\" lists them\n");
    let other = "error: b-two: it has no such thing\n";
    assert_eq!(answer_of(&mut fake, "device b-two 0 link up"), other);
    assert_eq!(answer_of(&mut fake, "device a 1 capacity 7"), "error: a: it has no such thing\n");
    fake.refuse = Some(ActionError::OutOfRange);
    assert_eq!(answer_of(&mut fake, "device a 0 capacity 7"), "error: a: out of range\n");
    fake.refuse = Some(ActionError::WrongState(VmState::Off));
    assert_eq!(answer_of(&mut fake, "vm a pause"), "error: a: it is off\n");
    fake.refuse = Some(ActionError::Denied);
    assert_eq!(answer_of(&mut fake, "quit"), "error: not allowed\n");
    assert!(fake.done.is_empty());
}

#[test]
fn the_log_is_told_in_whole_lines_that_fit() {
    let mut fake = Fake::default();
    assert_eq!(answer_of(&mut fake, "log"), "[sparkler] one\n[sparkler] two\n");
    let mut told = |room| {
        let mut out = String::new();
        run(b"log", &mut fake, &mut out, room).unwrap();
        out
    };
    assert_eq!(told(20), "[sparkler] two\n");
    assert_eq!(told(10), "");
    fake.log = (0..1000).map(|n| format!("line {n}\n")).collect::<String>().into_bytes();
    let all = answer_of(&mut fake, "log");
    assert!(all.len() <= 8192 && all.len() > 8000);
    assert!(all.ends_with("line 999\n"));
    assert!(all.starts_with("line "));
}

#[test]
fn an_output_that_is_full_ends_the_command() {
    struct Full;
    impl std::fmt::Write for Full {
        fn write_str(&mut self, _: &str) -> std::fmt::Result {
            Err(std::fmt::Error)
        }
    }
    for line in ["vms", "devices", "stats", "cores", "memory", "log", "help", "x"] {
        assert!(run(line.as_bytes(), &mut Fake::default(), &mut Full, 8192).is_err(), "{line}");
    }
}

proptest! {
    #[test]
    fn any_line_is_answered(line in prop::collection::vec(any::<u8>(), 0..140)) {
        let mut out = String::new();
        run(&line, &mut Fake::default(), &mut out, 8192).unwrap();
        prop_assert!(out.is_empty() || out.ends_with('\n'));
        prop_assert!(out.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')));
    }
}
