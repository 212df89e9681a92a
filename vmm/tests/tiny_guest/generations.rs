//! Templates of clones of templates, made as the VM process makes them.

use std::sync::Arc;

use snapshot::memory::MAX_LAYERS;
use snapshot::{
    Artifact, GuestSpec, HostInfo, Start, StateFile, Store, Template, TemplateName, TemplateSpec,
};
use vmm::{Machine, MemoryBacking, MemorySize};

use crate::{Bench, STARTING, assert_consecutive, collect, counter, freeze, memory_size};

/// A bench with a store on it.
struct Line {
    bench: Bench,
    store: Store,
}

impl Line {
    fn new() -> Self {
        let bench = Bench::new(&counter());
        let store = Store::open(&bench.path("store")).unwrap();
        Self { bench, store }
    }

    /// Boots the first template; `output` gets what it prints.
    fn first(&self, output: &mut Vec<u8>) -> Template {
        let name = name("first");
        let pending = self.store.create(&name, memory_size().bytes()).unwrap();
        let memory = pending.memory().try_clone().unwrap();
        let backing = MemoryBacking::Shared(Arc::new(memory));
        let mut machine = Machine::boot(&self.bench.config(), backing).unwrap();
        machine.resume();
        collect(&machine, output, 10);
        let frozen = freeze(&mut machine, output);
        drop(machine);
        pending.publish(self.spec(), frozen.state).unwrap()
    }

    fn restore(&self, template: &Template) -> Machine {
        let config = self
            .bench
            .clone_config(&format!("{}.sock", template.name()));
        Machine::restore(
            template.state(),
            template.memory(),
            &template.working_set(),
            &config,
        )
        .unwrap()
    }

    /// Makes a template of a clone of `parent`, which goes on.
    fn snapshot(
        &self,
        parent: &Template,
        clone: &mut Machine,
        id: &str,
        output: &mut Vec<u8>,
    ) -> (Template, Start) {
        let mut pending = self
            .store
            .create(&name(id), clone.memory_file_bytes())
            .unwrap();
        let start = pending.start_from(parent, &|| true).unwrap();
        let frozen = freeze(clone, output);
        let ranges = pending.divide(&clone.own_memory().unwrap()).unwrap();
        let source = clone.memory_source();
        source.copy_to(pending.memory(), &ranges, &|| true).unwrap();
        clone.resume();
        let template = pending.publish(self.spec(), frozen.state).unwrap();
        assert!(self.store.verify(&name(id)).unwrap().is_whole());
        (template, start)
    }

    fn spec(&self) -> TemplateSpec {
        TemplateSpec {
            minivmm: "test".to_owned(),
            abi: 1,
            guest: GuestSpec {
                cpus: 1,
                max_cpus: 4,
                memory_bytes: memory_size().bytes(),
                max_memory_bytes: memory_size().bytes(),
                kernel: Artifact::of(&self.bench.path("kernel")).unwrap(),
                initrd: None,
                cmdline: String::new(),
                held: false,
                devices: Vec::new(),
            },
            host: HostInfo {
                kernel: "test".to_owned(),
                cpu_vendor: "test".to_owned(),
                cpu_model: "test".to_owned(),
            },
            cpuid: snapshot_json("[]"),
        }
    }
}

fn snapshot_json(text: &str) -> Box<serde_json::value::RawValue> {
    serde_json::value::RawValue::from_string(text.to_owned()).unwrap()
}

fn name(text: &str) -> TemplateName {
    text.parse().unwrap()
}

/// The guest writes one page and its registers are in the state: each generation has to go on with both.
#[test]
fn ten_generations_go_on_where_they_were_and_so_do_their_parents() {
    let line = Line::new();
    let mut output = Vec::new();
    let mut parent = line.first(&mut output);
    for generation in 2..=10 {
        let mut clone = line.restore(&parent);
        clone.resume();
        collect(&clone, &mut output, 10);
        let id = format!("g{generation}");

        let (template, start) = line.snapshot(&parent, &mut clone, &id, &mut output);

        // The clone goes on, too.
        let mut further = output.clone();
        collect(&clone, &mut further, 10);
        assert_consecutive(&further);
        drop(clone);
        // The first is a layer of its own, and after the deepest there is one again.
        let expected = (generation - 1) % MAX_LAYERS + 1;
        assert_eq!(template.memory().count(), expected);
        assert_eq!(matches!(start, Start::Copy(_)), expected == 1, "{start:?}");
        let files = &template.manifest().files;
        if expected > 1 {
            assert!(files.memory.allocated <= 1 << 20, "{files:?}");
        }
        let gone = parent.name().clone();
        drop(parent);
        let nobody_starts = STARTING.read().unwrap();
        line.store.delete_from_family(&gone).unwrap();
        drop(nobody_starts);
        parent = template;
    }
    let mut last = line.restore(&parent);
    last.resume();
    collect(&last, &mut output, 10);
    assert_consecutive(&output);
}

#[test]
fn a_clone_that_grew_is_a_layer_with_what_was_added() {
    let line = Line::new();
    let mut output = Vec::new();
    let first = line.first(&mut output);
    let mut clone = line.restore(&first);
    clone.resume();
    let size = MemorySize::from_mib(64).unwrap();
    clone.set_memory_size(size).unwrap();

    let (second, _) = line.snapshot(&first, &mut clone, "second", &mut output);
    drop(clone);
    let mut grown = line.restore(&second);
    let (third, start) = line.snapshot(&second, &mut grown, "third", &mut output);
    drop(grown);

    assert!(matches!(start, Start::Layer { layers: 3 }), "{start:?}");
    let bytes = memory_size().bytes() + (128 << 20);
    for template in [&second, &third] {
        assert_eq!(template.memory().length(), bytes);
        assert_eq!(line.restore(template).memory_file_bytes(), bytes);
    }
    // Nothing of the added memory was used: all of it is one run without data.
    assert!(second.memory().map().overlays() <= 8);
    assert!(second.manifest().files.memory.allocated < 1 << 20);
}

#[test]
fn a_map_of_a_shorter_memory_is_refused_before_anything_runs() {
    let line = Line::new();
    let first = line.first(&mut Vec::new());
    let state = StateFile::open(&first.path().join("state")).unwrap();
    let pending = line.store.create(&name("short"), 16 << 20).unwrap();
    let short = pending
        .publish(line.spec(), std::fs::read(state.origin()).unwrap())
        .unwrap();
    let config = line.bench.clone_config("short.sock");

    let error =
        Machine::restore(short.state(), short.memory(), &short.working_set(), &config).unwrap_err();

    let text = error.to_string();
    assert_eq!(text, "Memory file has 16777216 bytes, expected 33554432");
}
