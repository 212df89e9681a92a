//! Two commands at once: one of them wins or both do, and the other one says why not.

use minivmm_tests::random::rounds;
use minivmm_tests::{Ended, until};

use rustix::process::Signal;

use crate::bench::{Bench, GuestCode, assert_composed};

/// Runs two commands at the same time.
#[track_caller]
fn both(bench: &Bench, first: &str, second: &str) -> [Ended; 2] {
    let commands = [bench.start(first), bench.start(second)];
    let ended = commands.map(minivmm_tests::Running::wait);
    for ended in &ended {
        assert_composed(ended);
    }
    ended
}

/// At least one did its work, and one that did not says one of `reasons`.
#[track_caller]
fn one_wins(ended: &[Ended; 2], reasons: &[&str]) {
    let [first, second] = ended;
    assert!(
        first.code() == Some(0) || second.code() == Some(0),
        "{}\n{}",
        first.report(),
        second.report()
    );
    both_explain(ended, reasons);
}

#[track_caller]
fn both_explain(ended: &[Ended; 2], reasons: &[&str]) {
    for ended in ended {
        let explains = reasons.iter().any(|reason| ended.stderr().contains(reason));
        assert!(ended.code() == Some(0) || explains, "{}", ended.report());
    }
}

const GONE: &str = "There is no VM";
const ENDED: &str = "has ended";

#[test]
fn snapshots_of_one_name() {
    let bench = Bench::new(GuestCode::Reader);
    for id in ["a", "b"] {
        bench.run(&bench.boot(id)).ok();
    }
    for _ in 0..rounds(5) {
        let ended = both(
            &bench,
            "snapshot --no-hold a base",
            "snapshot --no-hold b base",
        );
        one_wins(&ended, &["is being created by another process", "exists"]);
        assert!(ended.iter().any(|ended| ended.code() != Some(0)));
        let of_one_vm = both(&bench, "snapshot --no-hold a x", "snapshot --no-hold a y");
        one_wins(&of_one_vm, &["is being made already"]);
        for name in bench.whole_templates() {
            bench.run(&format!("template delete {name}")).ok();
        }
    }
    bench.check_what_is_left();
}

#[test]
fn snapshot_and_what_ends_or_halts_the_vm() {
    let bench = Bench::new(GuestCode::Reader);
    for other in [
        "stop vm --force",
        "rm -f vm",
        "pause vm",
        "pause vm; \"$0\" resume vm",
    ] {
        for _ in 0..rounds(3) {
            bench.run(&bench.boot("vm")).ok();
            let ended = both(&bench, "snapshot --no-hold vm base", other);
            both_explain(&ended, &[GONE, ENDED, "VM vm", "shutting down"]);
            let templates = bench.whole_templates();
            let made = ended[0].code() == Some(0);
            assert_eq!(templates.len(), usize::from(made), "{}", ended[0].report());
            if made {
                bench.run("restore base --no-agent --id clone").ok();
                bench.run("rm -f clone").ok();
                bench.run("template delete base").ok();
            }
            bench.check_what_is_left();
        }
    }
}

#[test]
fn restores_of_one_id() {
    let bench = Bench::new(GuestCode::Idle);
    bench.make_template("base");
    for _ in 0..rounds(5) {
        let line = "restore base --no-agent --id vm";
        let ended = both(&bench, line, line);
        one_wins(&ended, &["VM vm is running"]);
        assert_eq!(bench.vms().len(), 1);
        bench.check_what_is_left();
    }
}

#[test]
fn restore_and_delete() {
    let bench = Bench::new(GuestCode::Idle);
    for _ in 0..rounds(8) {
        bench.make_template("base");
        let ended = both(
            &bench,
            "restore base --no-agent --id vm",
            "template delete base",
        );
        let reasons = ["does not exist", "is being deleted", "is in use by 1 clone"];
        one_wins(&ended, &reasons);
        assert_ne!(ended[0].code(), ended[1].code(), "a clone of nothing");
        for name in bench.check_what_is_left() {
            bench.run(&format!("template delete {name}")).ok();
        }
    }
}

#[test]
fn verify_and_delete() {
    let bench = Bench::new(GuestCode::Reader);
    for _ in 0..rounds(8) {
        bench.make_template("base");
        let ended = both(&bench, "template verify base", "template delete base");
        one_wins(&ended, &["does not exist", "is being deleted", "is in use"]);
        for name in bench.check_what_is_left() {
            bench.run(&format!("template delete {name}")).ok();
        }
    }
}

#[test]
fn deletes_of_one_template() {
    let bench = Bench::new(GuestCode::Idle);
    for _ in 0..rounds(8) {
        bench.make_template("base");
        let ended = both(&bench, "template delete base", "template delete base");
        one_wins(&ended, &["does not exist", "is being deleted", "is in use"]);
        assert_eq!(bench.check_what_is_left(), [""; 0]);
    }
}

#[test]
fn creates_and_snapshots_and_deletes_of_one_name() {
    let bench = Bench::new(GuestCode::Reader);
    bench.run(&bench.boot("vm")).ok();
    for _ in 0..rounds(3) {
        // It waits for an agent that there is none of, and holds the name meanwhile.
        let create = bench.start(&format!(
            "template create base {} --timeout 600",
            bench.machine()
        ));
        let pending = bench.store().join("templates/.base.creating");
        until("it has the name", || pending.exists());
        bench
            .run("snapshot --no-hold vm base")
            .fails(1)
            .says("is being created by another process");
        bench
            .run("template delete base")
            .fails(1)
            .says("does not exist");
        bench.run("restore base").fails(1).says("does not exist");
        create.signal(Signal::INT);
        create.wait().fails(130);
        bench.run("snapshot --no-hold vm base").ok();
        bench.run("template delete base").ok();
    }
    bench.check_what_is_left();
}

#[test]
fn everything_that_ends_a_vm() {
    let bench = Bench::new(GuestCode::Idle);
    let ends = [
        "rm -f vm",
        "stop vm --force",
        "stop vm",
        "pause vm",
        "resume vm",
    ];
    for first in ends {
        for second in ends {
            bench.run(&bench.boot("vm")).ok();
            let ended = both(&bench, first, second);
            one_wins(&ended, &[GONE, ENDED, "VM vm"]);
            bench.check_what_is_left();
        }
    }
}

#[test]
fn a_new_vm_of_an_id_that_is_being_removed() {
    let bench = Bench::new(GuestCode::Idle);
    for _ in 0..rounds(10) {
        bench.run(&bench.boot("vm")).ok();
        let ended = both(&bench, "rm -f vm", &bench.boot("vm"));
        one_wins(&ended, &["VM vm is running", "is running; stop it first"]);
        bench.check_what_is_left();
    }
}
