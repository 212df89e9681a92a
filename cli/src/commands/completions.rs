//! `minivmm completions`: a completion script for a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::error::{Outcome, SUCCESS};
use crate::output;

const EXAMPLES: &str = "\
EXAMPLES:
  Complete commands and options in bash from the next login on:
    minivmm completions bash > /etc/bash_completion.d/minivmm";

/// Print a completion script for a shell.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let mut script = Vec::new();
        let mut command = crate::args::Cli::command();
        clap_complete::generate(self.shell, &mut command, "minivmm", &mut script);
        output::bytes(&script)?;
        Ok(SUCCESS)
    }
}
