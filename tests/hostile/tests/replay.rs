//! Every target over its corpus, and over inputs that proptest makes: what `make fuzz` found once is
//! looked at in each run of the unit tests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use hostile::{TARGETS, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Inputs that are made up for a target.
const CASES: u32 = 64;
const LONGEST: usize = 512;

fn corpus(target: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let files = fs::read_dir(directory.join(target)).unwrap();
    let mut files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn find(name: &str) -> Target {
    *TARGETS.iter().find(|(other, _)| *other == name).unwrap()
}

fn replay(name: &str) {
    let (_, run) = find(name);
    let files = corpus(name);
    assert!(!files.is_empty(), "no corpus for {name}");
    run(&[]);
    for file in files {
        println!("{}", file.display());
        run(&fs::read(file).unwrap());
    }
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: CASES,
            failure_persistence: None,
            ..Config::default()
        },
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let inputs = (
        any::<proptest::sample::Index>(),
        vec(any::<u8>(), 0..LONGEST),
    );
    let files = corpus(name);
    let result = runner.run(&inputs, |(base, noise)| {
        // Half of it an input that led somewhere, the rest noise.
        let mut input = fs::read(base.get(&files)).unwrap();
        input.truncate(noise.len());
        input.extend(noise);
        run(&input);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn virtqueues() {
    replay("virtqueues");
}

#[test]
fn queues() {
    replay("queues");
}

#[test]
fn packets() {
    replay("packets");
}

#[test]
fn registers() {
    replay("registers");
}

#[test]
fn device_states() {
    replay("device_states");
}

#[test]
fn machines() {
    replay("machines");
}

#[test]
fn template_files() {
    replay("template_files");
}

#[test]
fn answers() {
    replay("answers");
}

#[test]
fn archives() {
    replay("archives");
}

#[test]
fn kernels() {
    replay("kernels");
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let names = |below: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(directory.join(below)).unwrap();
        let name = |entry: fs::DirEntry| entry.path().file_stem().unwrap().to_owned();
        entries
            .map(|entry| name(entry.unwrap()).into_string().unwrap())
            .collect()
    };
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("fuzz_targets"), targets);
}
