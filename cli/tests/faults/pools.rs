//! Pools: what they hand out, what they leave, and who dies when.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use minivmm_tests::leftovers::processes_of;
use minivmm_tests::random::rounds;
use minivmm_tests::{Running, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bench::{Bench, GuestCode, assert_composed};

const TAKE: &str = "restore base --no-agent --pool";

/// A pool of template "base" that is full.
struct Pool<'a> {
    bench: &'a Bench,
    command: Option<Running>,
}

impl<'a> Pool<'a> {
    fn open(bench: &'a Bench, options: &str) -> Self {
        let pool = Self {
            bench,
            command: Some(bench.start(&format!("pool base {options}"))),
        };
        until("the pool is full", || {
            let status = pool.list();
            status.is_some_and(|status| status["ready"] == status["size"])
        });
        pool
    }

    fn list(&self) -> Option<Value> {
        let pools = self.bench.run("pool --list --json").ok().json();
        pools.as_array().unwrap().first().cloned()
    }

    fn count(&self, what: &str) -> u64 {
        self.list().unwrap()[what].as_u64().unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.count("pid").try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends it as an operator would, and checks that nothing of it is left.
    fn end(mut self) -> String {
        self.signal(Signal::TERM);
        let ended = self.command.take().unwrap().wait();
        ended.ok();
        assert_eq!(files(self.bench), Vec::<PathBuf>::new());
        ended.stderr()
    }
}

fn files(bench: &Bench) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(bench.state().join("pools"));
    let entries = entries.into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn bench_with_template() -> Bench {
    let bench = Bench::new(GuestCode::Reader);
    bench.make_template("base");
    bench
}

/// The guest prints on its console for as long as it runs.
fn assert_runs(bench: &Bench, id: &str) {
    let console = bench.state().join("vms").join(id).join("console.log");
    let length = || std::fs::metadata(&console).map_or(0, |file| file.len());
    until("the guest prints", || length() > 0);
}

#[test]
fn a_clone_is_taken_replaced_and_outlives_its_pool() {
    let bench = bench_with_template();
    let pool = Pool::open(&bench, "--size 2");
    assert!(bench.vms().is_empty());
    let taken = bench.run(&format!("{TAKE} --id a --json"));
    assert_eq!(taken.ok().stderr(), "");
    let pid = taken.json()["pid"].clone();
    assert_runs(&bench, "a");
    assert_eq!(bench.vm("a")["pid"], pid);
    until("the pool is full again", || pool.count("ready") == 2);
    assert_eq!((pool.count("handed_out"), pool.count("died")), (1, 0));

    bench.run("template delete base").fails(1).says("in use");

    pool.end();
    until("only the clone is left", || {
        processes_of(bench.root()).len() == 1
    });
    assert_eq!(bench.vm("a")["state"], "running");
    bench.run("rm -f a").ok();
    bench.run("template delete base").ok();
    bench.check_what_is_left();
}

#[test]
fn without_a_clone_that_is_ready_one_is_made() {
    let bench = bench_with_template();
    let alone = bench.run(&format!("{TAKE} --id a"));
    let hint = "template base has no pool; 'minivmm pool base' starts one";
    alone.ok().says(hint);

    let pool = Pool::open(&bench, "--size 1");
    let ids: Vec<_> = (0..rounds(12)).map(|n| format!("b{n}")).collect();
    let commands: Vec<_> = ids
        .iter()
        .map(|id| bench.start(&format!("{TAKE} --id {id}")))
        .collect();
    for command in commands {
        command.wait().ok();
    }
    for id in &ids {
        assert_runs(&bench, id);
    }
    let handed_out = pool.count("handed_out");
    assert!((1..=ids.len() as u64).contains(&handed_out), "{handed_out}");
    pool.end();
    bench.check_what_is_left();
}

#[test]
fn members_that_are_killed_are_replaced() {
    let bench = bench_with_template();
    let pool = Pool::open(&bench, "--size 3");
    let keeper = pool.count("pid");
    for round in 1..=rounds(3) {
        let members = processes_of(bench.root());
        let member = members
            .into_iter()
            .find(|pid| u64::from(pid.as_raw_nonzero().get().unsigned_abs()) != keeper)
            .unwrap();
        kill_process(member, Signal::KILL).unwrap();
        until("it is replaced", || {
            (pool.count("ready"), pool.count("died")) == (3, u64::from(round))
        });
    }
    bench.run(&format!("{TAKE} --id a")).ok();
    assert_runs(&bench, "a");
    let said = pool.end();
    assert!(said.contains("a clone was killed that was ready"), "{said}");
    bench.check_what_is_left();
}

#[test]
fn a_killed_pool_takes_its_members_with_it() {
    let bench = bench_with_template();
    let mut pool = Pool::open(&bench, "--size 3");
    bench.run(&format!("{TAKE} --id a")).ok();
    pool.signal(Signal::KILL);
    let killed = pool.command.take().unwrap().wait();
    assert_eq!(killed.signal(), Some(Signal::KILL.as_raw()));
    until("only the clone is left", || {
        processes_of(bench.root()).len() == 1
    });
    assert!(pool.list().is_none());
    let alone = bench.run(&format!("{TAKE} --id b"));
    alone.ok().says("has no pool");
    Pool::open(&bench, "--size 1").end();
    bench.check_what_is_left();
}

#[test]
fn what_cannot_be_is_said_as_without_a_pool() {
    let bench = bench_with_template();
    bench.run("pool nothing --size 2").fails(1).says("nothing");
    assert_eq!(files(&bench), Vec::<PathBuf>::new());

    let pool = Pool::open(&bench, "--size 2");
    bench.run("pool base").fails(1).says("runs already");
    bench.run(&format!("{TAKE} --id a")).ok();
    until("the pool is full again", || pool.count("ready") == 2);
    for options in ["--id a", "--id b --disk nowhere.img"] {
        let [pooled, alone] = ["--pool", ""].map(|pool| {
            let ended = bench.run(&format!("restore base --no-agent {pool} {options}"));
            assert_composed(&ended);
            (ended.code(), ended.stderr())
        });
        assert_eq!(pooled, alone, "{options}");
        assert_ne!(pooled.0, Some(0));
    }
    bench.assert_gone("b");
    pool.end();
    bench.check_what_is_left();
}

#[test]
fn callers_that_say_nothing_or_nonsense_cost_no_clone() {
    let bench = bench_with_template();
    let pool = Pool::open(&bench, "--size 2");
    let connect = || {
        let socket = pool.list().unwrap()["socket"].as_str().unwrap().to_owned();
        UnixStream::connect(socket).unwrap()
    };
    drop(connect());
    let mut nonsense = connect();
    nonsense.write_all(b"GET / HTTP/1.1\n").unwrap();
    let mut answer = String::new();
    nonsense.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("no request for a clone"), "{answer}");
    let mut silent = connect();
    silent.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("No request came"), "{answer}");
    let _open = connect();
    bench.run(&format!("{TAKE} --id a")).ok();
    assert_runs(&bench, "a");
    assert_eq!(pool.count("died"), 0);
    pool.end();
    bench.check_what_is_left();
}

#[test]
fn memory_of_a_pool_is_limited() {
    let bench = bench_with_template();
    let command = bench.start("pool base --size 1000 --max-memory 32M");
    let list = || bench.run("pool --list --json").ok().json()[0].clone();
    until("the limit is reached", || {
        list()["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("--max-memory"))
    });
    let status = list();
    let (ready, bytes) = (status["ready"].as_u64(), status["memory_bytes"].as_u64());
    assert!((1..999).contains(&ready.unwrap()), "{status}");
    assert!(bytes.unwrap() <= 32 << 20, "{status}");
    let pid = Pid::from_raw(status["pid"].as_i64().unwrap().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let ended = command.wait();
    let first = format!("{} of base ready\n", ready.unwrap());
    assert_eq!((ended.code(), ended.text()), (Some(0), first));
    bench.check_what_is_left();
}
