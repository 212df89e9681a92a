//! `minivmm template`: makes templates and looks after them.

mod create;
mod delete;
mod flatten;
mod inspect;
mod list;
mod verify;

use clap::Subcommand;

use crate::args::Context;
use crate::error::Outcome;

const EXAMPLES: &str = "\
EXAMPLES:
  Make a template, look at it, start a clone of it, and remove both:
    minivmm template create base --kernel guest/vmlinuz --initrd guest/initrd.img
    minivmm template list
    minivmm restore base --id web-1
    minivmm rm -f web-1
    minivmm template delete base";

/// Make, list, inspect, verify, flatten and delete templates.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum TemplateCommand {
    Create(Box<create::CreateArgs>),
    List(list::ListArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    Flatten(flatten::FlattenArgs),
    Delete(delete::DeleteArgs),
}

impl TemplateCommand {
    /// Runs the command.
    pub fn run(self, mut context: Context) -> Outcome {
        match self {
            Self::Create(args) => args.run(&mut context),
            Self::List(args) => args.run(&context),
            Self::Inspect(args) => args.run(&context),
            Self::Verify(args) => args.run(&mut context),
            Self::Flatten(args) => args.run(&mut context),
            Self::Delete(args) => args.run(&context),
        }
    }
}
