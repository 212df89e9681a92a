//! `minivmm template delete`: removes templates.

use clap::Args;
use serde::Serialize;
use snapshot::TemplateName;

use crate::args::Context;
use crate::error::{FAILURE, Outcome, SUCCESS, describe};
use crate::output;

const EXAMPLES: &str = "\
EXAMPLES:
  Remove two templates; refused while clones of them run:
    minivmm template delete base big
  Remove one that a snapshot was made from; the snapshot goes on to work:
    minivmm template delete --force base

A snapshot shares the memory that its VM has not written with the VM's template. When that is deleted first,
what is shared stays on the disk for the snapshot, until that is deleted or flattened, too.";

/// Delete templates that no clone uses.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct DeleteArgs {
    /// The templates
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TemplateName>,
    /// Also when snapshots were made from them, which keep what they need
    #[arg(long, short)]
    force: bool,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Deleted {
    name: String,
    deleted: bool,
    problem: Option<String>,
}

impl DeleteArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let store = context.open_store()?;
        let delete = |name: &TemplateName| {
            let result = if self.force {
                store.delete_from_family(name)
            } else {
                store.delete(name)
            };
            let problem = result.err().map(|error| describe(&error.into()));
            Deleted {
                name: name.to_string(),
                deleted: problem.is_none(),
                problem,
            }
        };
        let results: Vec<_> = self.names.iter().map(delete).collect();
        if self.json {
            output::json(&results)?;
        }
        for result in &results {
            match &result.problem {
                Some(problem) => output::complain(format!("error: {problem}")),
                None if self.json => {}
                None => output::line(&result.name)?,
            }
        }
        let all = results.iter().all(|result| result.deleted);
        Ok(if all { SUCCESS } else { FAILURE })
    }
}
