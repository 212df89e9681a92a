//! The VM process of a clone, from its template to running vCPUs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use snapshot::{MemoryCheck, Store, Template, TemplateName};
use vmm::{CloneConfig, EarlyVm, GenerationId, Machine, MemorySize, PreparedClone};

use super::bring_up::{Ask, BringUp};
use super::disks;
use super::link::{Message, VmEnd};
use super::plan::RestorePlan;
use super::premises::{Premises, Running, Setup, fail};
use super::session::Start;
use super::sizing::Sizing;
use super::snapshot::Origin;
use super::start::live;
use super::template_watch::TemplateWatch;
use crate::agent::PROMPT;
use crate::commands::restore::check_size;
use crate::error::{FAILURE, coded};
use crate::machine_args::NETWORK;
use crate::state::claim::Claim;
use crate::state::record::Kind;

/// What a clone is made of.
#[derive(Debug)]
pub struct Source {
    template: Arc<Template>,
    made: Made,
}

/// How far a clone is before it is known which VM it is going to be.
#[derive(Debug)]
enum Made {
    Begun(EarlyVm),
    Prepared(Box<PreparedClone>),
}

impl Source {
    /// Opens a template, which cannot be deleted from now on. `vm` becomes the clone.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(vm: EarlyVm, store: &Path, template: &TemplateName) -> anyhow::Result<Self> {
        let template = Store::open(store)?.acquire(template)?;
        Ok(Self {
            template: Arc::new(template),
            made: Made::Begun(vm),
        })
    }

    /// Does ahead of time what is the same for every clone.
    ///
    /// # Errors
    /// The template is damaged, or KVM refuses.
    pub fn prepare(self) -> anyhow::Result<Self> {
        let Self { template, made } = self;
        let made = match made {
            Made::Begun(vm) => {
                let working_set = template.working_set();
                PreparedClone::new(template.state(), template.memory(), &working_set, vm)
                    .and_then(|prepared| prepared.map_ahead(&working_set))
                    .map(|prepared| Made::Prepared(Box::new(prepared)))
                    .with_context(|| format!("Cannot restore template {}", template.name()))?
            }
            prepared @ Made::Prepared(_) => prepared,
        };
        Ok(Self { template, made })
    }
}

/// Makes a clone, serves it until its end, and returns the exit code.
pub fn restore(vm: EarlyVm, plan: RestorePlan, mut setup: Setup, link: VmEnd) -> u8 {
    match Source::open(vm, &plan.store, &plan.template) {
        Ok(source) => {
            setup.timeline.mark("template open");
            restore_from(source, plan, setup, link)
        }
        Err(error) => fail(&link, &error),
    }
}

/// As [`restore`], with a template that is open.
pub fn restore_from(source: Source, mut plan: RestorePlan, setup: Setup, link: VmEnd) -> u8 {
    let Source { template, made } = source;
    let checked = check(&mut plan, &template, &link);
    let claim = match checked.and_then(|()| Claim::new(&setup.state, &plan.id)) {
        Ok(claim) => claim,
        Err(error) => return fail(&link, &error),
    };
    let memory = Some(template.path());
    let code = live(
        Premises::move_in(claim, Kind::Clone, memory, setup, link),
        |premises| start(premises, plan, &template, made),
    );
    // Held until here: a template cannot be deleted while its clone lives.
    drop(template);
    code
}

fn start(
    premises: &mut Premises,
    mut plan: RestorePlan,
    template: &Arc<Template>,
    made: Made,
) -> anyhow::Result<Running> {
    note_template(premises, &plan.template, template)?;
    let (disks, entries) = disks::of_clone(template, premises.claim.dir(), &plan.disks)?;
    premises.record.disks = entries;
    let net = premises.connect(plan.net.take())?;
    let config = CloneConfig {
        vsock: premises.vsock(),
        generation: GenerationId::new(premises.identity.generation),
        disks,
        net,
    };
    let machine = match made {
        Made::Prepared(prepared) => prepared.into_machine(&config),
        Made::Begun(vm) => Machine::restore_in(
            vm,
            template.state(),
            template.memory(),
            &template.working_set(),
            &config,
        ),
    };
    let mut machine =
        machine.with_context(|| format!("Cannot restore template {}", plan.template))?;
    premises.mark_stages(&machine);
    // Before the first instruction: nothing of the machine has to be stopped for it.
    let sizing = (!plan.size.is_empty())
        .then(|| Sizing::begin(&mut machine, plan.size))
        .transpose()?;
    if sizing.is_some() {
        premises.timeline.mark("CPUs and memory added");
    }
    machine.resume();
    premises.timeline.mark("vCPUs running");
    let restored_ms = premises.timeline.elapsed_ms();
    premises.identity.template = Some(plan.template.to_string());
    premises.identity.begun = machine.begun();
    let ask = Ask::Adopt(premises.identity.clone(), sizing);
    let bring_up = if plan.with_agent {
        BringUp::ask(&machine, ask.clone(), plan.timeout, plan.keep)?
    } else {
        BringUp::Done
    };
    let start = Start {
        ask,
        ask_timeout: plan.timeout,
        timeout: plan.timeout,
        // The calls' own deadlines come first and say more: they give the agent a little time for
        // its answer that the guest has not got so far.
        deadline: Instant::now() + plan.timeout + PROMPT + Duration::from_secs(1),
        agent_is_optional: plan.keep,
        foreground: premises.foreground,
        restored_ms: Some(restored_ms),
    };
    let origin = Origin::Template(template.clone());
    Ok((machine, origin, bring_up, start))
}

/// Writes down what the clone is made of, and watches it from now on.
fn note_template(
    premises: &mut Premises,
    name: &TemplateName,
    template: &Arc<Template>,
) -> anyhow::Result<()> {
    let guest = &template.manifest().spec.guest;
    premises.record.template = Some(name.to_string());
    premises.record.cpus = u8::try_from(guest.cpus).context("Template has too many vCPUs")?;
    premises.record.memory_bytes = guest.memory_bytes;
    premises.template_watch = Some(TemplateWatch::of(template.clone()));
    premises
        .link
        .send(&Message::Step("Restoring the clone".to_owned()));
    Ok(())
}

/// Whether clones of the template can be what the plan says. What they have anyway is taken out of it.
fn check(plan: &mut RestorePlan, template: &Template, link: &VmEnd) -> anyhow::Result<()> {
    let guest = &template.manifest().spec.guest;
    let name = &plan.template;
    if guest.held && !plan.with_agent {
        return Err(coded(
            FAILURE,
            format!(
                "Clones of template {name} need their agent: without it their processes would stand still \
                 for ever; leave out --no-agent"
            ),
        ));
    }
    if plan.net.is_some() && !guest.devices.iter().any(|device| device == NETWORK) {
        return Err(coded(
            FAILURE,
            format!(
                "Template {name} has no network device; make it with 'minivmm template create --net'"
            ),
        ));
    }
    if let Some(cpus) = plan.size.cpus {
        let has = guest.cpus..=guest.max_cpus;
        check_size(name, "cpus", has, cpus.into())?;
    }
    if let Some(memory) = plan.size.memory {
        let size = |bytes| {
            MemorySize::from_bytes(bytes).with_context(|| format!("Template {name} is not usable"))
        };
        let has = size(guest.memory_bytes)?..=size(guest.max_memory_bytes)?;
        check_size(name, "mem", has, memory)?;
    }
    disks::check_slots(template, &plan.disks)?;
    // One whose file times are not the published ones was compared when it was opened.
    if plan.verify && template.memory_check() == MemoryCheck::Stamp {
        link.send(&Message::Step(format!("Verifying {name}")));
        template.verify_memory()?;
    }
    if plan.verify {
        template.verify_disks()?;
    }
    let memory = |memory: &MemorySize| memory.bytes() != guest.memory_bytes;
    plan.size.cpus = plan.size.cpus.filter(|n| u32::from(*n) != guest.cpus);
    plan.size.memory = plan.size.memory.filter(memory);
    Ok(())
}
