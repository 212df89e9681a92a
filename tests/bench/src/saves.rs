//! What it takes to make a template, and to snapshot a clone that goes on.

use minivmm_tests::{Guest, Host};
use serde_json::Value;

use crate::report::Report;
use crate::samples::{Samples, Unit};

const ROUNDS: u32 = 3;

/// Makes templates and snapshots. The program itself tells how long the machine stood still.
pub fn measure(host: &Host, template: &str, report: &mut Report) {
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
    report.add("template create, pause to saved", "minivmm", saves);
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
