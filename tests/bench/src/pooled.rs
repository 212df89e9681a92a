//! A clone out of a pool, from the request to the guest's first reply: by the command, and by a program that
//! runs already and asks the pool itself. Beside them restores without a pool, and the floor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::{Context, bail};
use minivmm_tests::Host;
use serde_json::{Value, json};

use crate::contenders::{Minivmm, Vmm};
use crate::report::Report;
use crate::restores::{Run, floor, take_turns};
use crate::timed::millis;

/// Clones that wait.
const SIZE: &str = "2";

/// Lets all take turns.
pub fn measure(
    host: &Host,
    minivmm: &Minivmm<'_>,
    contenders: &[Box<dyn Vmm + '_>],
    rounds: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    let template = minivmm.template();
    let pool = host.start(["pool", template, "--size", SIZE]);
    let restore = || Ok(millis(minivmm.restore()?.took));
    let from_pool = || Ok(millis(minivmm.restore_from_pool()?.took));
    let mut runs: Vec<Run<'_>> = vec![
        ("floor", Box::new(|| floor(host, template))),
        ("restore", Box::new(restore)),
        ("--pool", Box::new(from_pool)),
        ("request", Box::new(|| request(host, template))),
    ];
    // minivmm without a pool is the first of them, and there already.
    for vmm in contenders.iter().skip(1) {
        runs.push((vmm.name(), Box::new(|| Ok(millis(vmm.restore()?.took)))));
    }
    // With a full pool, which makes no clone meanwhile.
    let until_full = || host.until_pool_is_full();
    take_turns(
        "clone, start to first reply",
        rounds,
        until_full,
        &runs,
        report,
    )?;
    pool.signal(rustix::process::Signal::TERM);
    pool.wait().ok();
    Ok(())
}

/// Asks the pool as a runtime would that has been running for long.
fn request(host: &Host, template: &str) -> anyhow::Result<f64> {
    let id = host.new_id();
    let socket = host.pool()["socket"].as_str().map(str::to_owned);
    let socket = socket.context("There is no pool")?;
    let plan = json!({ "id": id, "template": template, "store": host.store() });
    let request = format!("{}\n", json!({ "version": 1, "plan": plan }));

    let begun = Instant::now();
    let mut pool = UnixStream::connect(socket)?;
    pool.write_all(request.as_bytes())?;
    let mut lines = BufReader::new(&pool).lines();
    loop {
        let line = lines.next().context("The pool has ended")??;
        let message: Value = serde_json::from_str(&line)?;
        if message.get("ready").is_some() {
            break;
        }
        if message.get("failed").is_some() || message.get("empty").is_some() {
            bail!("The pool has no clone: {line}");
        }
    }
    let took = begun.elapsed();
    // Lets it go.
    (&pool).write_all(b"k")?;
    host.minivmm(["rm", "--force", &id]).ok();
    Ok(millis(took))
}
