//! `minivmm ps`: the VMs there are.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::args::Context;
use crate::control::client::ask;
use crate::control::{Reply, Request};
use crate::error::{Outcome, SUCCESS};
use crate::id::VmId;
use crate::output;
use crate::state::Found;
use crate::state::record::{Record, State, now_ms};

const EXAMPLES: &str = "\
EXAMPLES:
  The VMs that run, then also those that have ended:
    minivmm ps
    minivmm ps --all
  For a program:
    minivmm ps --json | jq -r '.[].id'";

/// A VM process that does not answer in this time is shown as it said it was.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// List VMs. Those that have ended are shown with --all.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PsArgs {
    /// Also VMs that have ended
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A VM as it is listed.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Listed {
    Known(Record),
    /// It was killed before it wrote its record, or is about to write it.
    Unknown {
        id: VmId,
        state: State,
    },
}

impl PsArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let found = context.state.list()?;
        let listed: Vec<Listed> = found
            .into_iter()
            .filter(|vm| self.all || !has_ended(vm))
            .map(listed)
            .collect();
        if self.json {
            output::json(&listed)?;
        } else {
            let now = now_ms();
            let rows: Vec<_> = listed.iter().map(|vm| row(vm, now)).collect();
            let header = [
                "ID", "STATE", "TEMPLATE", "CPUS", "MEMORY", "CID", "PID", "CREATED",
            ];
            output::table(header, &rows)?;
        }
        Ok(SUCCESS)
    }
}

fn has_ended(vm: &Found) -> bool {
    let state = vm.record.as_ref().map(|record| record.state);
    !vm.alive && state == Some(State::Exited)
}

fn listed(vm: Found) -> Listed {
    let state = current_state(&vm);
    // It may have written down more while it was asked; one that was removed meanwhile is told of
    // as it was found.
    let record = Record::read(&vm.dir).ok().flatten().or(vm.record);
    match record {
        Some(mut record) => {
            record.state = state;
            Listed::Known(record)
        }
        None => Listed::Unknown {
            id: vm.dir.id().clone(),
            state,
        },
    }
}

fn current_state(vm: &Found) -> State {
    let recorded = vm
        .record
        .as_ref()
        .map_or(State::Starting, |record| record.state);
    match (vm.alive, recorded) {
        (true, State::Starting) | (_, State::Exited) => recorded,
        (false, _) => State::Dead,
        (true, _) => match ask(&vm.dir, Request::Status, Some(STATUS_TIMEOUT)) {
            Ok(Reply::Status { state }) => state,
            Ok(_) | Err(_) => recorded,
        },
    }
}

fn row(vm: &Listed, now: u64) -> [String; 8] {
    let none = || "-".to_owned();
    match vm {
        Listed::Known(record) => [
            record.id.to_string(),
            match (&record.end, &record.template_damage) {
                (Some(end), _) => format!("{} ({})", record.state.name(), end.code),
                (None, Some(_)) => format!("{} (template damaged)", record.state.name()),
                (None, None) => record.state.name().to_owned(),
            },
            record.template.clone().unwrap_or_else(none),
            record.cpus.to_string(),
            output::size(record.memory_bytes),
            record.cid.to_string(),
            record.pid.to_string(),
            output::age(now.saturating_sub(record.created_ms) / 1000),
        ],
        Listed::Unknown { id, state } => {
            let mut row = [(); 8].map(|()| none());
            row[0] = id.to_string();
            row[1] = state.name().to_owned();
            row
        }
    }
}
