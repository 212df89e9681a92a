//! `minivmm stats`: what VMs take from the host, and what their guests say of their memory.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use vmm::GuestMemoryStats;

use crate::args::Context;
use crate::control::client::ask;
use crate::control::{Reply, Request};
use crate::error::{FAILURE, Outcome, SUCCESS, describe};
use crate::id::VmId;
use crate::output;
use crate::state::Found;
use crate::usage::Usage;

const EXAMPLES: &str = "\
EXAMPLES:
  All VMs that run:
    minivmm stats
  What one takes that it does not share with other clones, for a program:
    minivmm stats web-1 --json | jq '.[0].private_bytes'

HOST is the VM's part of what it shares with others (PSS) and all of what it does not; PRIVATE is what it has
written and does not share. The guest's own figures need a balloon device: 'run' or 'template create' with --balloon.";

/// How long a VM process may take: it waits for its guest.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Show what VMs take from the host, and what their guests do with it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct StatsArgs {
    /// The VMs [default: all that run]
    #[arg(value_name = "ID")]
    ids: Vec<VmId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A VM's figures.
#[derive(Debug, Serialize)]
struct Stats {
    id: VmId,
    #[serde(flatten)]
    usage: Usage,
    /// None without a balloon device, or when the guest does not answer.
    guest: Option<GuestMemoryStats>,
}

impl StatsArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let vms = if self.ids.is_empty() {
            context.state.list()?
        } else {
            let found = self.ids.iter().map(|id| context.state.find_running(id));
            found.collect::<anyhow::Result<_>>()?
        };
        let mut code = SUCCESS;
        let mut all = Vec::new();
        for vm in vms.into_iter().filter(|vm| vm.alive) {
            match Stats::of(&vm) {
                Ok(stats) => all.push(stats),
                // It ended since it was listed.
                Err(_) if self.ids.is_empty() => {}
                Err(error) => {
                    output::complain(format!("error: {}", describe(&error)));
                    code = FAILURE;
                }
            }
        }
        if self.json {
            output::json(&all)?;
        } else {
            let header = [
                "ID",
                "CPU TIME",
                "HOST",
                "PRIVATE",
                "GUEST TOTAL",
                "FREE",
                "CACHED",
            ];
            let rows: Vec<_> = all.iter().map(Stats::row).collect();
            output::table(header, &rows)?;
        }
        Ok(code)
    }
}

impl Stats {
    fn of(vm: &Found) -> anyhow::Result<Self> {
        let record = vm
            .record
            .as_ref()
            .context("It is only just being started")?;
        let guest = match ask(&vm.dir, Request::GuestMemory, Some(TIMEOUT)) {
            Ok(Reply::GuestMemory { memory }) => memory,
            Ok(_) | Err(_) => None,
        };
        Ok(Self {
            id: record.id.clone(),
            usage: Usage::of(record.pid)?,
            guest,
        })
    }

    fn row(&self) -> [String; 7] {
        let guest = |field: fn(&GuestMemoryStats) -> Option<u64>| {
            let bytes = self.guest.as_ref().and_then(field);
            bytes.map_or_else(|| "-".to_owned(), output::size)
        };
        [
            self.id.to_string(),
            format!("{:.2} s", self.usage.cpu_seconds),
            output::size(self.usage.pss_bytes),
            output::size(self.usage.private_bytes),
            guest(|memory| memory.total_bytes),
            guest(|memory| memory.free_bytes),
            guest(|memory| memory.cached_bytes),
        ]
    }
}
