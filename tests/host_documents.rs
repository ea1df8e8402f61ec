//! Host: README.md says what is there.
#![cfg(not(target_os = "none"))]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of README.md under the heading `title`, up to the next of its level.
fn section(title: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("\n## {title}\n")).unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The table rows of a section, without head and rule.
fn rows(section: &str) -> impl Iterator<Item = &str> {
    section.lines().filter(|line| line.starts_with('|')).skip(2)
}

/// What stands between two `quote`s, one after the other.
fn quoted(text: &str, quote: char) -> impl Iterator<Item = &str> {
    text.split(quote).skip(1).step_by(2)
}

/// Every file in `folder` and below it.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

fn text_of(folders: &[&str]) -> String {
    let files = folders.iter().flat_map(|folder| files(folder));
    files.filter_map(|file| fs::read_to_string(file).ok()).collect()
}

#[test]
fn the_places_that_allow_unsafe_code_are_those_listed() {
    let section = section("Unsafe code");
    let listed: BTreeSet<_> =
        rows(&section).map(|row| quoted(row, '`').next().unwrap().to_owned()).collect();
    let found: BTreeSet<_> = files("src")
        .into_iter()
        .filter(|file| fs::read_to_string(file).unwrap().contains("[allow(unsafe_code"))
        .map(|file| file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned())
        // Where the root of a module allows it, all of its folder may.
        .map(|file| file.strip_suffix("mod.rs").map(str::to_owned).unwrap_or(file))
        .collect();
    assert_eq!(listed, found);
}

#[test]
fn every_test_that_proves_something_exists() {
    let (code, scripts) = (text_of(&["src", "tests"]), text_of(&["qemu/tests"]));
    let guest = text_of(&["guests/builtin"]);
    let section = section("What works");
    let mut proofs = 0;
    for row in rows(&section) {
        let proof = row.trim_end_matches('|').rsplit('|').next().unwrap();
        for name in quoted(proof, '`') {
            let found = code.contains(&format!("fn {name}("))
                || scripts.contains(&format!("test_{name}()"));
            assert!(found, "no test is called {name}, in: {row}");
            proofs += 1;
        }
        for name in quoted(proof, '"') {
            assert!(guest.contains(&format!("\"{name}\"")), "no check says {name:?}, in: {row}");
            proofs += 1;
        }
        assert!(!proof.trim().is_empty(), "nothing proves: {row}");
    }
    assert!(proofs > 0, "the table is empty");
}

#[test]
fn every_folder_of_the_source_is_in_the_layout() {
    let layout = section("Where things are");
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = if path.is_dir() { format!("{name}/") } else { name.to_owned() };
        assert!(layout.contains(&name), "src/{name} is not in the layout");
    }
}
