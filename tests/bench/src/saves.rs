//! What it takes to make a template, and to snapshot a clone that goes on.

use minivmm_tests::{Guest, Host};
use serde_json::Value;

use crate::contenders::Vmm;
use crate::report::Report;
use crate::samples::{Samples, Unit};
use crate::timed::millis;

const ROUNDS: u32 = 3;

/// Makes templates and snapshots. minivmm itself tells how long the machine stood still.
pub fn measure(host: &Host, template: &str, contenders: &[Box<dyn Vmm + '_>], report: &mut Report) {
    let mut saves = Samples::new(Unit::Milliseconds);
    let mut publishes = Samples::new(Unit::Milliseconds);
    for round in 0..ROUNDS {
        let name = format!("made-{round}");
        let made = host.minivmm(
            ["template", "create", &name, "--json"]
                .map(str::to_owned)
                .into_iter()
                .chain(Guest::debian_6_1().args()),
        );
        let made = made.ok().json();
        add(&mut saves, &made["save_ms"]);
        add(&mut publishes, &made["publish_ms"]);
        host.minivmm(["template", "delete", &name]).ok();
    }
    let name = "template create, pause to saved";
    report.add(name, "minivmm", saves);
    for vmm in contenders {
        if let Some(time) = vmm.save_time() {
            let once = Samples::once(Unit::Milliseconds, millis(time));
            report.add(name, vmm.name(), once);
        }
    }
    report.add("template create, saved to published", "minivmm", publishes);

    let mut pauses = Samples::new(Unit::Milliseconds);
    let mut totals = Samples::new(Unit::Milliseconds);
    for round in 0..ROUNDS {
        let name = format!("snapshot-{round}");
        let vm = host.restore(template);
        let made = host
            .minivmm(["snapshot", vm.id(), &name, "--json"])
            .ok()
            .json();
        add(&mut pauses, &made["paused_ms"]);
        add(&mut totals, &made["total_ms"]);
        vm.minivmm(["rm", "--force"]).ok();
        host.minivmm(["template", "delete", &name]).ok();
    }
    report.add("snapshot of a clone, standing still", "minivmm", pauses);
    report.add("snapshot of a clone, in all", "minivmm", totals);
}

fn add(samples: &mut Samples, value: &Value) {
    if let Some(value) = value.as_f64() {
        samples.add(value);
    }
}
