//! `minivmm exec`: runs a command in a guest.

use std::io::{self, IsTerminal};

use anyhow::{Context as _, bail};
use clap::Args;
use proto::guest::ExecRequest;

use crate::args::Context;
use crate::error::{Outcome, coded, describe};
use crate::id::VmId;
use crate::state::record::State;
use crate::terminal::window_size;

const EXAMPLES: &str = "\
EXAMPLES:
  Run a command; its output, its errors and its exit code are this command's own:
    minivmm exec web-1 -- ls -l /
  Send it something:
    tar c site | minivmm exec web-1 -- tar x -C /srv
  A shell on a terminal:
    minivmm exec -it web-1 -- sh";

/// The terminal's size when there is no terminal to ask.
const DEFAULT_WINDOW: (u32, u32) = (24, 80);

/// Run a command in a VM and end with its exit code.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ExecArgs {
    /// Pass standard input on to the command; the default unless it is a terminal
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// Directory to run the command in
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    workdir: String,
    /// User to run the command as: name, UID or UID:GID
    #[arg(short, long, value_name = "USER", default_value = "root")]
    user: String,
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl ExecArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let vsock = self
            .vsock(context)
            .map_err(|error| coded(crate::exec::FAILED, describe(&error)))?;
        crate::exec::run(&vsock, &self.request())
    }

    fn vsock(&self, context: &Context) -> anyhow::Result<std::path::PathBuf> {
        let id = &self.id;
        let vm = context.state.find_running(id)?;
        let record = vm
            .record
            .with_context(|| format!("VM {id} is only just being started"))?;
        if record.state == State::Paused {
            bail!("VM {id} is paused; 'minivmm resume {id}' lets it go on");
        }
        Ok(vm.dir.vsock_socket())
    }

    fn request(self) -> ExecRequest {
        let mut env = self.env;
        let is_term = |variable: &String| variable.starts_with("TERM=");
        if self.tty && !env.iter().any(is_term) {
            let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            env.push(format!("TERM={term}"));
        }
        let (rows, cols) = window_size(&io::stdin()).unwrap_or(DEFAULT_WINDOW);
        ExecRequest {
            argv: self.command,
            env,
            cwd: self.workdir,
            tty: self.tty,
            rows,
            cols,
            stdin: self.interactive || !io::stdin().is_terminal(),
            user: self.user,
            ..Default::default()
        }
    }
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}
