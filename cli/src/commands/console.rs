//! `minivmm console`: the user's terminal on a VM's serial console.

use std::os::unix::net::UnixStream;

use anyhow::Context as _;
use clap::Args;
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::Context;
use crate::attach::{Attached, Attachment};
use crate::error::{INTERRUPTED, Outcome, SUCCESS};
use crate::id::VmId;
use crate::poll;
use crate::signals::Signals;

const EXAMPLES: &str = "\
EXAMPLES:
  Use the guest's console; Ctrl-] leaves and the VM goes on:
    minivmm console web-1
  See what the guest prints from now on:
    minivmm console web-1 < /dev/null";

/// Attach the terminal to a VM's serial console. Ctrl-] leaves.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ConsoleArgs {
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
}

impl ConsoleArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let vm = context.state.find_running(&self.id)?;
        let path = vm.dir.console_socket();
        let console = UnixStream::connect(&path)
            .with_context(|| format!("Cannot connect to the console at {}", path.display()))?;
        let signals = Signals::catch(&[SIGHUP, SIGINT, SIGTERM]).context("Cannot catch signals")?;
        if let Some(hint) = Attachment::hint() {
            crate::output::complain(format!("minivmm: {hint}"));
        }
        let attachment = Attachment::new(&console)?;
        drop(console);
        follow(attachment, &signals)
    }
}

fn follow(mut attachment: Attachment, signals: &Signals) -> Outcome {
    loop {
        let wanted = attachment.fds();
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        fds.extend(
            wanted
                .iter()
                .flatten()
                .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
        );
        poll::wait(&mut fds, None).context("Cannot wait for the console")?;
        let mut polled = fds.iter().skip(1);
        let ready = wanted
            .map(|fd| fd.is_some() && polled.next().is_some_and(|fd| !fd.revents().is_empty()));
        drop(fds);
        if !signals.take().is_empty() {
            return Ok(INTERRUPTED);
        }
        if attachment.step(ready)? != Attached::Yes {
            return Ok(SUCCESS);
        }
    }
}
