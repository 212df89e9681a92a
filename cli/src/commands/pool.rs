//! `minivmm pool`: clones of a template that wait for somebody to want one.

use std::num::NonZeroUsize;

use clap::Args;
use snapshot::TemplateName;
use vmm::MemorySize;

use crate::args::Context;
use crate::error::{Outcome, SUCCESS};
use crate::output;
use crate::pool::keeper::Keeper;
use crate::pool::place::{self, Status};
use crate::pool::request::Stock;

const EXAMPLES: &str = "\
EXAMPLES:
  Keep eight clones ready until Ctrl-C or SIGTERM:
    minivmm pool base --size 8
  Take one, in another terminal; without a pool the clone is made as usual:
    minivmm restore base --pool
  The same without more than 64 MiB for clones that wait:
    minivmm pool base --size 100 --max-memory 64M
  The pools that run:
    minivmm pool --list

A clone that waits has no id, no directory and no network: it gets them, its size and its disks from the 'restore' that
takes it, and its clock goes on only then. The pool replaces it. A template cannot be deleted while it has a pool. Clones
that were taken do not depend on the pool any more.";

/// Keep clones of a template ready, made up to their first instruction, for 'restore --pool'.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PoolArgs {
    /// The template
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<TemplateName>,
    /// Clones to keep ready
    #[arg(long, value_name = "N", default_value = "4")]
    size: NonZeroUsize,
    /// Most memory that the clones may take while they wait: a smaller pool when they are too many
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<MemorySize>,
    /// List the pools that run
    #[arg(long, conflicts_with_all = ["name", "size", "max_memory"])]
    list: bool,
    /// Print JSON: with --list the pools, otherwise the pool once it is full
    #[arg(long)]
    json: bool,
}

impl PoolArgs {
    /// Runs the command.
    pub fn run(self, context: Context) -> Outcome {
        let Some(template) = self.name else {
            return self.print_list(&context);
        };
        let json = self.json;
        let stock = Stock {
            store: context.store.clone(),
            template,
        };
        let most_bytes = self.max_memory.map(MemorySize::bytes);
        let keeper = Keeper::open(context, stock, self.size.get(), most_bytes)?;
        keeper.run(|status| {
            if json {
                output::json(status)
            } else {
                let (count, name) = (status.ready, &status.template);
                output::line(format_args!("{count} of {name} ready"))
            }
        })?;
        Ok(SUCCESS)
    }

    fn print_list(&self, context: &Context) -> Outcome {
        let pools = place::list(&context.state)?;
        if self.json {
            output::json(&pools)?;
        } else {
            let header = [
                "TEMPLATE",
                "READY",
                "HANDED OUT",
                "DIED",
                "MEMORY",
                "PID",
                "PROBLEM",
            ];
            let rows: Vec<_> = pools.iter().map(row).collect();
            output::table(header, &rows)?;
        }
        Ok(SUCCESS)
    }
}

fn row(pool: &Status) -> [String; 7] {
    [
        pool.template.to_string(),
        format!("{} of {}", pool.ready, pool.size),
        pool.handed_out.to_string(),
        pool.died.to_string(),
        output::size(pool.memory_bytes),
        pool.pid.to_string(),
        pool.problem.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
