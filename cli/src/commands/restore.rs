//! `minivmm restore`: starts a clone of a template.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use snapshot::{StoreError, TemplateName};

use crate::args::{Context, seconds};
use crate::disk_args::DiskSpec;
use crate::error::{FAILURE, Outcome, coded, usage};
use crate::id::VmId;
use crate::machine_args::MachineArgs;
use crate::net::{Mode, NetArgs};
use crate::vm_process::launch::{self, LifeArgs};
use crate::vm_process::plan::{CreatePlan, Plan, RestorePlan};
use crate::vm_process::sizing::Target;

const EXAMPLES: &str = "\
EXAMPLES:
  Start a clone in the background; the command returns when it has its own identity and answers:
    minivmm restore base --id web-1
  The same, making the template first when it is missing:
    minivmm restore base --id web-1 --create --kernel guest/vmlinuz --initrd guest/initrd.img
  A clone that is larger than its template:
    minivmm restore base --id big-1 --cpus 4 --mem 2G
  One with a disk in a slot that its template keeps free (--disk-slots):
    minivmm restore base --disk data.img
  A clone in a network, with an address of its own:
    minivmm restore base --net tap=web1 --ip 10.0.0.2/24 --gateway 10.0.0.1
  A clone that takes over the eth0 of a network namespace:
    minivmm restore base --net netns=/run/netns/pod1
  One that 'minivmm pool base' keeps ready:
    minivmm restore base --pool --id web-2
  Start nothing unless every byte of the template is as it was published:
    minivmm restore base --verify
  A clone of a guest without an agent:
    minivmm restore bare --no-agent
  See where the time goes:
    minivmm restore base --timings
  A clone on this terminal's console; Ctrl-] ends it:
    minivmm restore base --foreground --rm";

/// Start a clone of a template. Prints its id; the clone runs in the background.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct RestoreArgs {
    /// The template
    #[arg(value_name = "NAME")]
    name: TemplateName,
    /// Make the template when it is missing, from the machine options
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    life: LifeArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    net: NetArgs,
    /// How long the clone may take until its agent answers; the template, when it is made, too
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "60")]
    timeout: Duration,
    /// Do not wait for an agent in the guest: the clone keeps the template's host name, clock and random
    /// numbers
    #[arg(long, conflicts_with_all = ["keep", "cpus", "mem"])]
    no_agent: bool,
    /// Leave a clone running whose agent does not answer, one of whose hooks fails, or that does not
    /// come to its size
    #[arg(long)]
    keep: bool,
    /// Compare every byte of the template with its checksums first, as 'template verify' does
    #[arg(long)]
    verify: bool,
    /// Take a clone that 'minivmm pool' keeps ready, if there is one
    #[arg(long, conflicts_with = "foreground")]
    pool: bool,
}

impl RestoreArgs {
    /// Runs the command.
    pub fn run(self, mut context: Context) -> Outcome {
        let id = match self.life.id.clone() {
            Some(id) => id,
            None => VmId::generate(self.name.as_str())?,
        };
        context.state.vm(&id).check_socket_paths()?;
        self.check_frozen_options()?;
        let net = self.net.clone().resolve(!self.no_agent)?;
        if net.is_some() && self.no_agent {
            return Err(usage(
                "A clone in a network needs its agent, which gives it an address of its own; leave out \
                 --no-agent",
            ));
        }
        if self.create {
            self.create_if_missing(&mut context)?;
        }
        let disks = self.machine.disk_args.disks.into_iter();
        let disks = disks.map(DiskSpec::absolute);
        let plan = RestorePlan {
            id,
            template: self.name,
            store: context.store.clone(),
            net,
            size: Target {
                cpus: self.machine.cpus,
                memory: self.machine.mem,
            },
            disks: disks.collect::<anyhow::Result<_>>()?,
            with_agent: !self.no_agent,
            timeout: self.timeout,
            keep: self.keep,
            verify: self.verify,
        };
        if self.pool {
            return launch::pooled_vm(context, plan, &self.life);
        }
        launch::vm(context, Plan::Restore(plan), &self.life)
    }

    /// What a template has fixed can be chosen only when the template is made.
    fn check_frozen_options(&self) -> anyhow::Result<()> {
        let machine = &self.machine;
        let given = [
            ("--guest", machine.guest.is_some()),
            ("--kernel", machine.kernel.is_some()),
            ("--initrd", machine.initrd.is_some()),
            ("--cmdline", machine.cmdline.is_some()),
            ("--max-cpus", machine.max_cpus.is_some()),
            ("--max-mem", machine.max_mem.is_some()),
            ("--disk-slots", machine.disk_args.disk_slots.is_some()),
            ("--rng", machine.rng),
            ("--balloon", machine.balloon),
        ];
        match given.iter().find(|(_, given)| *given && !self.create) {
            None => Ok(()),
            Some((option, _)) => Err(usage(format!(
                "{option} is fixed by the template; give it with --create, which makes the \
                 template when it is missing"
            ))),
        }
    }

    fn create_if_missing(&self, context: &mut Context) -> anyhow::Result<()> {
        let mut machine = self.machine.clone();
        // They are the clone's, for the slots of the template.
        machine.disk_args.disks.clear();
        let mut machine = machine.resolve()?;
        machine.network = !matches!(self.net.net, None | Some(Mode::None));
        if self.exists(context)? {
            return Ok(());
        }
        let _only_one_makes_it = context.state.lock_creation(|| {
            context
                .progress
                .notice("another process makes a template, waiting for it");
        })?;
        if self.exists(context)? {
            return Ok(());
        }
        let name = &self.name;
        let plan = CreatePlan::new(name, &context.store, machine, self.timeout)?;
        let created = launch::template(context, plan)
            .with_context(|| format!("Cannot make the template {name}"))?;
        context.progress.notice(format!(
            "template {name} was made in {:.0} ms",
            created.total_ms
        ));
        Ok(())
    }

    fn exists(&self, context: &Context) -> anyhow::Result<bool> {
        match context.open_store()?.inspect(&self.name) {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Compares what a clone is asked to have with what its template has.
///
/// # Errors
/// Less than the template has, or more than its clones can have.
pub fn check_size<T: PartialOrd + Display>(
    template: &TemplateName,
    option: &str,
    has: RangeInclusive<T>,
    asked: T,
) -> anyhow::Result<()> {
    let (least, most) = (has.start(), has.end());
    if asked < *least {
        return Err(coded(
            FAILURE,
            format!(
                "--{option} {asked} is less than template {template} has ({least}); a clone cannot \
                 be smaller than its template"
            ),
        ));
    }
    if asked > *most {
        return Err(coded(
            FAILURE,
            format!(
                "--{option} {asked} is more than clones of template {template} can have ({most}); \
                 make the template with a larger --max-{option}"
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_has_what_its_template_has_or_more() {
        let name: TemplateName = "base".parse().unwrap();
        let check = |asked| check_size(&name, "cpus", 2..=8, asked);
        check(2).unwrap();
        check(8).unwrap();
        let less = check(1).unwrap_err().to_string();
        assert!(
            less.starts_with("--cpus 1 is less than template base has (2)"),
            "{less}"
        );
        let more = check(9).unwrap_err().to_string();
        assert_eq!(
            more,
            "--cpus 9 is more than clones of template base can have (8); make the template with a \
             larger --max-cpus"
        );
    }
}
