//! `minivmm man`: the manual pages.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory};

use crate::error::{Outcome, SUCCESS};
use crate::output;

const EXAMPLES: &str = "\
EXAMPLES:
  Read the manual page of the program:
    minivmm man | man -l -
  Install the pages of all commands:
    minivmm man --output /usr/local/share/man/man1";

/// Print the manual page, or write the pages of all commands.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ManArgs {
    /// Write one page for each command into this directory
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl ManArgs {
    /// Runs the command.
    pub fn run(self) -> Outcome {
        let command = crate::args::Cli::command();
        if let Some(dir) = self.output {
            std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(command, &dir))
                .with_context(|| format!("Cannot write manual pages to {}", dir.display()))?;
        } else {
            let mut page = Vec::new();
            clap_mangen::Man::new(command)
                .render(&mut page)
                .context("Cannot render the manual page")?;
            output::bytes(&page)?;
        }
        Ok(SUCCESS)
    }
}
