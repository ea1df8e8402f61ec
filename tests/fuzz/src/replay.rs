//! Runs the targets over the corpus, without a fuzzer: `replay [TARGET [FILE...]]`.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use sparkler_fuzz::TARGETS;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let wanted = arguments.next();
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let (mut passed, mut failed) = (0, 0);
    for (name, target) in TARGETS {
        if wanted.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let inputs = if files.is_empty() { inputs(&corpus.join(name)) } else { files.clone() };
        let before = (passed, failed);
        for input in &inputs {
            let outcome = fs::read(input).map(|data| catch_unwind(|| target(&data)));
            if matches!(outcome, Ok(Ok(()))) {
                passed += 1;
            } else {
                failed += 1;
                println!("test {name}: {} ... FAILED", input.display());
            }
        }
        if inputs.is_empty() {
            failed += 1;
            println!("test {name}: no inputs ... FAILED");
        }
        println!("test {name} ... {} passed, {} failed", passed - before.0, failed - before.1);
    }
    let verdict = if failed == 0 && passed > 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failed} failed");
    if verdict == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The files of a folder, in order of their names.
fn inputs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}
