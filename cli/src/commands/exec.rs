//! `minivmm exec`: runs a command in a guest.

use std::io::{self, IsTerminal};

use clap::Args;
use proto::guest::ExecRequest;

use super::vsock_of;
use crate::args::Context;
use crate::env::{self, Variable, Variables};
use crate::error::{Outcome, coded, describe};
use crate::id::VmId;
use crate::terminal::window_size;

const EXAMPLES: &str = "\
EXAMPLES:
  Run a command; its output, its errors and its exit code are this command's own:
    minivmm exec web-1 -- ls -l /
  Send it something:
    tar c site | minivmm exec web-1 -- tar x -C /srv
  A shell on a terminal:
    minivmm exec -it web-1 -- sh
  A server that is left to itself, as another user:
    minivmm exec -d -u www-data web-1 -- httpd -f -p 8080";

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
    /// Start the command and leave it to itself: nothing of what it prints is kept
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Set an environment variable, or pass on our own of that name; may be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = env::variable)]
    env: Vec<Variable>,
    /// Set the variables in a file, one a line as for --env, '#' begins a comment; may be repeated
    #[arg(long, value_name = "FILE", value_parser = env::file)]
    env_file: Vec<Variables>,
    /// Directory to run the command in [default: the image's, else /]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User to run the command as, with the groups that the guest's /etc/group gives it or the one group
    /// that is named here [default: the image's, else root]
    #[arg(short, long, value_name = "NAME|UID[:GROUP|GID]")]
    user: Option<String>,
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// The command and its arguments [default: the entry point and command of the guest's image]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl ExecArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let vsock = vsock_of(context, &self.id)
            .map_err(|error| coded(crate::exec::FAILED, describe(&error)))?;
        let request = self.request();
        if request.detach {
            crate::exec::start_detached(&vsock, &request)
        } else {
            crate::exec::run(&vsock, &request)
        }
    }

    fn request(self) -> ExecRequest {
        let given = self.env_file.into_iter().flatten().chain(self.env);
        let mut env: Vec<String> = given.flatten().collect();
        let is_term = |variable: &String| variable.starts_with("TERM=");
        if self.tty && !env.iter().any(is_term) {
            let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
            env.push(format!("TERM={term}"));
        }
        let (rows, cols) = window_size(&io::stdin()).unwrap_or(DEFAULT_WINDOW);
        ExecRequest {
            argv: self.command,
            env,
            cwd: self.workdir.unwrap_or_default(),
            tty: self.tty,
            rows,
            cols,
            stdin: !self.detach && (self.interactive || !io::stdin().is_terminal()),
            detach: self.detach,
            user: self.user.unwrap_or_default(),
            ..Default::default()
        }
    }
}
