//! `minivmm snapshot`: makes a template of a VM that runs.

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use snapshot::TemplateName;

use crate::args::{Context, seconds};
use crate::control::client::ask;
use crate::control::{Reply, Request, Snapshotted};
use crate::error::{Outcome, SUCCESS};
use crate::id::VmId;
use crate::output;

const EXAMPLES: &str = "\
EXAMPLES:
  Keep what a VM has become as a template, and start a clone of it:
    minivmm snapshot web-1 web-warm
    minivmm restore web-warm --id web-2

The VM stands still while the memory that it has written is copied, and goes on with its connections and its
identity. Its processes are held a little longer, from before the copy until after it, so that in a clone
none of them runs before the clone has an identity of its own. In a clone, connections are reset; listeners
are not.

What the VM has not written the new template shares with the VM's own template, on the disk and in memory;
either can be deleted without the other ('minivmm template flatten --help').";

/// Make a template of a running VM, which goes on.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct SnapshotArgs {
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// Name of the template
    #[arg(value_name = "NAME")]
    name: TemplateName,
    /// How long the guest's processes may take to stop
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
    hold_timeout: Duration,
    /// Hold no processes: they run on in a clone before it has its identity. For guests without an agent,
    /// and paused ones
    #[arg(long, conflicts_with = "hold_timeout")]
    no_hold: bool,
    /// How long it may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "600")]
    timeout: Duration,
    /// Print what is known about the template as JSON
    #[arg(long)]
    json: bool,
}

impl SnapshotArgs {
    /// Runs the command.
    pub fn run(self, context: &mut Context) -> Outcome {
        let vm = context.state.find_running(&self.id)?;
        // Makes what is missing of the store, with this user's rights and messages.
        drop(context.open_store()?);
        context.progress.step("Saving the VM".to_owned());
        let request = Request::Snapshot {
            name: self.name.to_string(),
            store: context.store.clone(),
            hold_timeout_ms: (!self.no_hold)
                .then(|| u64::try_from(self.hold_timeout.as_millis()).unwrap_or(u64::MAX)),
        };
        let reply = ask(&vm.dir, request, Some(self.timeout));
        context.progress.finish();
        let Reply::Snapshotted { template } = reply? else {
            bail!("VM {}: the answer is not one to a snapshot", self.id);
        };
        if self.json {
            output::json(&template)?;
            return Ok(SUCCESS);
        }
        output::line(&template.name)?;
        let held = template.held_ms.map_or_else(
            || "were not held".to_owned(),
            |held| format!("were held for {held:.0} ms"),
        );
        context.progress.notice(format!(
            "the VM stood still for {:.0} ms, its processes {held}, published after {:.0} ms; {}",
            template.paused_ms,
            template.total_ms,
            on_disk(&template)
        ));
        if let Some(reason) = &template.copied_because {
            let notice = format!(
                "all of the VM's memory was copied, not only what it has written: {reason}"
            );
            context.progress.notice(notice);
        }
        Ok(SUCCESS)
    }
}

fn on_disk(template: &Snapshotted) -> String {
    let own = output::size(template.allocated_bytes);
    if template.layers <= 1 {
        return format!("{own} on disk");
    }
    let shared = output::size(template.shared_bytes);
    format!(
        "{own} on disk and {shared} in common with {} other layers",
        template.layers - 1
    )
}
