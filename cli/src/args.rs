//! The command line: global options and the list of commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::commands;
use crate::error::Outcome;
use crate::logging;
use crate::progress::Progress;
use crate::state::StateDir;
use crate::timeline::Timeline;
use crate::vm_process::early::Early;

const EXAMPLES: &str = "\
EXAMPLES:
  Make a bootable guest, freeze it as a template and run a command in a clone:
    minivmm guest build --kernel linux-image-*.deb --busybox /usr/bin/busybox -o guest
    minivmm template create base --kernel guest/vmlinuz --initrd guest/initrd.img
    minivmm restore base --id web-1
    minivmm exec web-1 -- uname -a
    minivmm rm -f web-1

EXIT CODES:
  0  done                        11  the guest stopped with a triple fault
  1  failed                      12  the guest's kernel panicked
  2  wrong usage                 13  KVM or minivmm failed, or was killed
  10 the guest rebooted          14  stopped by the user
  15 the guest's memory was lost: its template was cut short, or a disk is full
  'exec' ends with the command's own code; 125 to 127 as a shell would.";

/// A virtual machine monitor that clones: boot a guest once, freeze it as a template, then start
/// as many clones of it as you like, each within milliseconds and sharing the template's memory.
#[derive(Debug, Parser)]
#[command(name = "minivmm", version, after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    options: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct GlobalOptions {
    /// Directory of the running VMs [default: $XDG_RUNTIME_DIR/minivmm or /run/minivmm]
    #[arg(long, global = true, env = "MINIVMM_STATE_DIR", value_name = "DIR")]
    #[arg(hide_env_values = true, help_heading = "Global options")]
    state_dir: Option<PathBuf>,
    /// Directory of the templates
    #[arg(long, global = true, env = "MINIVMM_STORE", value_name = "DIR")]
    #[arg(hide_env_values = true, default_value = "/var/lib/minivmm")]
    #[arg(help_heading = "Global options")]
    store: PathBuf,
    /// Print errors and results only
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
    /// Log more; may be repeated. Logs of a VM go to its vmm.log
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    #[arg(help_heading = "Global options")]
    verbose: u8,
}

// Only the arguments of the command that is asked for are made up; for all of them it takes milliseconds. So
// what the list of commands says of each has to be here as well.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Boot a VM. Prints its id; the VM runs in the background.
    Run(commands::run::RunArgs),
    /// Start a clone of a template. Prints its id; the clone runs in the background.
    Restore(commands::restore::RestoreArgs),
    /// Keep clones of a template ready, made up to their first instruction, for 'restore --pool'.
    Pool(commands::pool::PoolArgs),
    /// Change the vCPUs and the memory of a running VM.
    Resize(commands::resize::ResizeArgs),
    /// Make a template of a running VM, which goes on.
    Snapshot(commands::snapshot::SnapshotArgs),
    /// Show what VMs take from the host, and what their guests do with it.
    Stats(commands::stats::StatsArgs),
    #[command(subcommand)]
    Template(commands::template::TemplateCommand),
    /// List VMs. Those that have ended are shown with --all.
    Ps(commands::ps::PsArgs),
    /// Run a command in a VM and end with its exit code.
    Exec(commands::exec::ExecArgs),
    /// Copy files between this host and a VM.
    Cp(commands::cp::CpArgs),
    /// Let ports of this host lead to ports or Unix sockets of a VM.
    PortForward(commands::port_forward::PortForwardArgs),
    /// Attach the terminal to a VM's serial console. Ctrl-] leaves.
    Console(commands::console::ConsoleArgs),
    /// Print a VM's console output or its log.
    Logs(commands::logs::LogsArgs),
    /// Pause VMs: all of their vCPUs stand still when the command returns.
    Pause(commands::pause::PauseArgs),
    /// Let paused VMs go on. A VM that is not paused is left alone.
    Resume(commands::resume::ResumeArgs),
    /// Stop VMs: ask the guest to power off, then kill it. The VM stays listed until 'rm'.
    Stop(commands::stop::StopArgs),
    /// Wait until a VM ends. The exit code tells how, as that of 'run --foreground' does.
    Wait(commands::wait::WaitArgs),
    /// Remove VMs that have ended or whose process was killed.
    Rm(commands::rm::RmArgs),
    #[command(subcommand)]
    Guest(commands::guest::GuestCommand),
    /// Print a completion script for a shell.
    Completions(commands::completions::CompletionsArgs),
    /// Print the manual page, or write the pages of all commands.
    Man(commands::man::ManArgs),
}

impl Command {
    /// VM processes log on their own; what they inherit must not have a logger yet.
    fn starts_vms(&self) -> bool {
        matches!(
            self,
            Self::Run(_) | Self::Restore(_) | Self::Pool(_) | Self::Template(_)
        )
    }
}

/// What every command works with.
#[derive(Debug)]
pub struct Context {
    /// The running VMs.
    pub state: StateDir,
    /// The directory of the templates.
    pub store: PathBuf,
    /// Uses of `-v`.
    pub verbosity: u8,
    /// Tells the user what takes long.
    pub progress: Progress,
    /// What happened when since the program started.
    pub timeline: Timeline,
    /// The process of the clone that is to be, if there is one already.
    pub early: Option<Early>,
}

impl Context {
    /// The store of templates. What is missing of it is made.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open_store(&self) -> Result<snapshot::Store, snapshot::StoreError> {
        snapshot::Store::open(&self.store)
    }
}

impl Cli {
    /// Runs the command and returns its exit code.
    ///
    /// # Errors
    /// What the command reports.
    pub fn run(self, timeline: Timeline, early: Option<Early>) -> Outcome {
        let options = self.options;
        let mut context = Context {
            state: StateDir::new(options.state_dir.as_deref())?,
            store: std::path::absolute(&options.store)?,
            verbosity: options.verbose,
            progress: Progress::new(options.quiet),
            timeline,
            early,
        };
        if !self.command.starts_vms() {
            logging::start_command(options.verbose);
        }
        match self.command {
            Command::Run(args) => args.run(context),
            Command::Restore(args) => args.run(context),
            Command::Pool(args) => args.run(context),
            Command::Resize(args) => args.run(&mut context),
            Command::Snapshot(args) => args.run(&mut context),
            Command::Stats(args) => args.run(&context),
            Command::Template(command) => command.run(context),
            Command::Ps(args) => args.run(&context),
            Command::Exec(args) => args.run(&context),
            Command::Cp(args) => args.run(&context),
            Command::PortForward(args) => args.run(&context),
            Command::Console(args) => args.run(&context),
            Command::Logs(args) => args.run(&context),
            Command::Pause(args) => args.run(&context),
            Command::Resume(args) => args.run(&context),
            Command::Stop(args) => args.run(&context),
            Command::Wait(args) => args.run(&context),
            Command::Rm(args) => args.run(&context),
            Command::Guest(command) => command.run(&mut context),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

/// Parses a time-out in whole seconds.
///
/// # Errors
/// Not a number from 0 to a day.
pub fn seconds(text: &str) -> Result<Duration, String> {
    const MOST: u64 = 24 * 60 * 60;
    match text.parse() {
        Ok(seconds) if seconds <= MOST => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("expected whole seconds, 0 to {MOST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_listed_with_what_its_own_help_says() {
        let listed = Cli::command();
        let mut built = Cli::command();
        built.build();
        for command in listed.get_subcommands() {
            let name = command.get_name();
            let about = |command: &clap::Command| command.get_about().map(ToString::to_string);
            let own = built.find_subcommand(name).and_then(about);
            assert!(own.is_some(), "{name}");
            assert_eq!(about(command), own, "{name}");
        }
    }

    #[test]
    fn seconds_are_whole_and_bounded() {
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        for text in ["", "-1", "1.5", "5s", "86401", "99999999999999999999"] {
            assert!(seconds(text).is_err(), "{text:?}");
        }
    }
}
