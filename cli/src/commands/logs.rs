//! `minivmm logs`: what a guest printed on its console, or a VM process logged.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use rustix::fs::inotify;

use crate::args::Context;
use crate::error::{Outcome, SUCCESS};
use crate::id::VmId;
use crate::output;
use crate::poll;
use crate::state::dir::VmDir;

const EXAMPLES: &str = "\
EXAMPLES:
  What the guest has printed on its console:
    minivmm logs web-1
  The same, and what it prints until it ends:
    minivmm logs -f web-1
  What the VM process itself has to say:
    minivmm logs --vmm web-1";

/// How soon a follower notices that a VM's process was killed, which no file tells.
const LIVENESS_PERIOD: Duration = Duration::from_secs(1);

/// Print a VM's console output or its log.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct LogsArgs {
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// Go on until the VM ends
    #[arg(short, long)]
    follow: bool,
    /// What the guest printed on its console; the default
    #[arg(long, conflicts_with = "vmm")]
    console: bool,
    /// What the VM process logged
    #[arg(long)]
    vmm: bool,
}

impl LogsArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let dir = context.state.find(&self.id)?.dir;
        let (path, before) = if self.vmm {
            (dir.vmm_log(), None)
        } else {
            (dir.console_log(), Some(dir.console_log_before()))
        };
        // Watched before the first look, so that nothing is missed in between.
        let watch = if self.follow {
            Some(Watch::new(&dir)?)
        } else {
            None
        };
        if let Some(before) = before {
            Tail::new(before).print_new()?;
        }
        let mut tail = Tail::new(path);
        tail.print_new()?;
        if let Some(watch) = watch {
            while context.state.find(&self.id).is_ok_and(|vm| vm.alive) {
                watch.wait()?;
                tail.print_new()?;
            }
            tail.print_new()?;
        }
        Ok(SUCCESS)
    }
}

/// A file that grows, and whose name a new file may take.
struct Tail {
    path: PathBuf,
    file: Option<File>,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Prints what has been added, also in a file that has taken the name.
    fn print_new(&mut self) -> anyhow::Result<()> {
        let newest = open(&self.path)?;
        if let Some(file) = &mut self.file {
            print_rest(file, &self.path)?;
        }
        if let Some(mut newest) = newest
            && !self.is_current(&newest)?
        {
            print_rest(&mut newest, &self.path)?;
            self.file = Some(newest);
        }
        Ok(())
    }

    fn is_current(&self, newest: &File) -> anyhow::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let Some(file) = &self.file else {
            return Ok(false);
        };
        let context = || format!("Cannot inspect {}", self.path.display());
        let (ours, other) = (
            file.metadata().with_context(context)?,
            newest.metadata().with_context(context)?,
        );
        Ok((ours.dev(), ours.ino()) == (other.dev(), other.ino()))
    }
}

fn open(path: &Path) -> anyhow::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("Cannot open {}", path.display())),
    }
}

fn print_rest(file: &mut File, path: &Path) -> anyhow::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file
            .read(&mut buffer)
            .with_context(|| format!("Cannot read {}", path.display()))?;
        if count == 0 {
            return Ok(());
        }
        output::bytes(buffer.get(..count).unwrap_or_default())?;
    }
}

/// Wakes when something in a VM's directory changes.
struct Watch {
    inotify: std::os::fd::OwnedFd,
}

impl Watch {
    fn new(dir: &VmDir) -> anyhow::Result<Self> {
        let context = || format!("Cannot watch {}", dir.path().display());
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).with_context(context)?;
        let changes = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::DELETE;
        inotify::add_watch(&inotify, dir.path(), changes).with_context(context)?;
        Ok(Self { inotify })
    }

    fn wait(&self) -> anyhow::Result<()> {
        poll::readable(&self.inotify, Some(Instant::now() + LIVENESS_PERIOD))
            .context("Cannot wait for the log")?;
        let mut events = [0; 4096];
        // What has changed does not matter, only that something has.
        while matches!(rustix::io::read(&self.inotify, &mut events), Ok(count) if count > 0) {}
        Ok(())
    }
}
