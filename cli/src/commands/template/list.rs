//! `minivmm template list`: the templates of the store.

use clap::Args;
use serde::Serialize;
use snapshot::ListedTemplate;

use crate::args::Context;
use crate::error::{Outcome, SUCCESS, describe};
use crate::output;
use crate::state::record::now_ms;

const EXAMPLES: &str = "\
EXAMPLES:
  The templates, then only their names for a program:
    minivmm template list
    minivmm template list --json | jq -r '.[].name'

ON DISK is what a template's own memory file takes. SHARED is what it has in common with the templates that
it was made from: those files are on the disk once, for as long as one template needs them.";

/// List templates. A damaged one is listed with what is wrong with it.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// Why it cannot be used.
    problem: Option<String>,
    #[serde(flatten)]
    facts: Option<Facts>,
}

#[derive(Debug, Serialize)]
struct Facts {
    created: String,
    #[serde(skip)]
    age_seconds: u64,
    cpus: u32,
    max_cpus: u32,
    memory_bytes: u64,
    max_memory_bytes: u64,
    allocated_bytes: u64,
    shared_bytes: u64,
    layers: usize,
}

impl ListArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let listed: Vec<_> = context
            .open_store()?
            .list()?
            .into_iter()
            .map(listed)
            .collect();
        if self.json {
            output::json(&listed)?;
        } else {
            let rows: Vec<_> = listed.iter().map(row).collect();
            let header = [
                "NAME", "CPUS", "MEMORY", "LAYERS", "ON DISK", "SHARED", "CREATED",
            ];
            output::table(header, &rows)?;
        }
        Ok(SUCCESS)
    }
}

fn listed(template: ListedTemplate) -> Listed {
    let name = template.name.to_string();
    match template.manifest {
        Err(error) => Listed {
            name,
            problem: Some(describe(&error.into())),
            facts: None,
        },
        Ok(manifest) => {
            let created_s = u64::try_from(manifest.created.as_second()).unwrap_or_default();
            let guest = &manifest.spec.guest;
            Listed {
                name,
                problem: None,
                facts: Some(Facts {
                    created: manifest.created.to_string(),
                    age_seconds: (now_ms() / 1000).saturating_sub(created_s),
                    cpus: guest.cpus,
                    max_cpus: guest.max_cpus,
                    memory_bytes: guest.memory_bytes,
                    max_memory_bytes: guest.max_memory_bytes,
                    allocated_bytes: manifest.files.memory.allocated,
                    shared_bytes: manifest.files.shared_bytes(),
                    layers: manifest.files.layer_count(),
                }),
            }
        }
    }
}

fn row(listed: &Listed) -> [String; 7] {
    let name = listed.name.clone();
    match &listed.facts {
        Some(facts) => [
            name,
            facts.cpus.to_string(),
            output::size(facts.memory_bytes),
            facts.layers.to_string(),
            output::size(facts.allocated_bytes),
            output::size(facts.shared_bytes),
            output::age(facts.age_seconds),
        ],
        None => {
            let none = || "-".to_owned();
            let problem = listed.problem.as_deref().unwrap_or_default();
            let damaged = format!("damaged: {problem}");
            [name, none(), none(), none(), none(), none(), damaged]
        }
    }
}
