//! A VM's directory with its log, record and sockets, before there is a machine in it.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm::{BootConfig, DiskConfig, Machine, MemoryFaults, NetConfig, VsockConfig};

use super::bring_up::BringUp;
use super::console::ConsoleHub;
use super::fork;
use super::link::{Message, VmEnd};
use super::session::{Session, Start};
use super::sizing::NotReached;
use super::snapshot::Origin;
use super::template_watch::TemplateWatch;
use crate::agent::Identity;
use crate::control::server::Server;
use crate::error::{describe, exit_code};
use crate::logging;
use crate::machine_args::MachineSpec;
use crate::net::{NetPlan, Network};
use crate::signals::Signals;
use crate::state::StateDir;
use crate::state::claim::Claim;
use crate::state::record::{EndReason, Kind, Record};
use crate::timeline::Timeline;

/// A VM's directory with its sockets, before there is a machine.
#[derive(Debug)]
pub struct Premises {
    pub claim: Claim,
    pub record: Record,
    pub identity: Identity,
    pub link: VmEnd,
    pub timeline: Timeline,
    control: Server,
    console: ConsoleHub,
    signals: Signals,
    memory_faults: MemoryFaults,
    pub template_watch: Option<TemplateWatch>,
    pub network: Option<Network>,
    pub foreground: bool,
    remove: bool,
}

/// What is needed to move in.
#[derive(Debug)]
pub struct Setup {
    pub state: StateDir,
    pub console: Option<UnixStream>,
    pub remove: bool,
    pub verbosity: u8,
    pub timeline: Timeline,
}

/// A machine whose vCPUs run, and what is to happen first.
pub type Running = (Machine, Origin, BringUp, Start);

impl Premises {
    /// Sets up the directory that was claimed: log, record, sockets. `memory` is the place of
    /// the file that the guest's memory is going to be in.
    pub fn move_in(
        claim: Claim,
        kind: Kind,
        memory: Option<&Path>,
        setup: Setup,
        link: VmEnd,
    ) -> MovedIn {
        match Self::try_move_in(&claim, kind, memory, setup) {
            Ok(make) => MovedIn::Ready(Box::new(make(claim, link))),
            Err(error) => MovedIn::Failed { claim, link, error },
        }
    }

    fn try_move_in(
        claim: &Claim,
        kind: Kind,
        memory: Option<&Path>,
        setup: Setup,
    ) -> anyhow::Result<impl FnOnce(Claim, VmEnd) -> Self + use<>> {
        let dir = claim.dir();
        let log = dir.vmm_log();
        fork::log_to(&log).with_context(|| format!("Cannot open {}", log.display()))?;
        logging::start_vm_process(setup.verbosity);
        let signals = Signals::catch(&[SIGHUP, SIGINT, SIGTERM]).context("Cannot catch signals")?;
        let memory_faults = MemoryFaults::catch(lost_line(memory), EndReason::MemoryLost.code())
            .context("Cannot catch signals")?;
        let identity = Identity::new(dir.id()).context("Cannot make an identity")?;
        let record = Record::starting(dir, kind, identity.cid);
        record.write(dir)?;
        let control = Server::bind(&dir.control_socket())?;
        let foreground = setup.console.is_some();
        let console = ConsoleHub::open(dir, setup.console)?;
        let mut timeline = setup.timeline;
        timeline.mark("directory set up");
        Ok(move |claim, link| Self {
            claim,
            record,
            identity,
            link,
            timeline,
            control,
            console,
            signals,
            memory_faults,
            template_watch: None,
            network: None,
            foreground,
            remove: setup.remove,
        })
    }

    /// The socket device of this VM.
    pub fn vsock(&self) -> VsockConfig {
        VsockConfig {
            cid: self.identity.cid,
            socket: self.claim.dir().vsock_socket(),
        }
    }

    /// The machine to boot in this VM.
    pub fn boot_config(
        &self,
        machine: &MachineSpec,
        disks: Vec<DiskConfig>,
        net: Option<NetConfig>,
    ) -> BootConfig {
        BootConfig {
            cpus: machine.cpus,
            memory: machine.memory,
            max_memory: machine.max_memory,
            kernel: machine.kernel.clone(),
            initrd: machine.initrd.clone(),
            cmdline: machine.cmdline.clone(),
            vsock: self.vsock(),
            disks,
            rng: machine.rng,
            balloon: machine.balloon,
            net,
        }
    }

    /// Connects the VM to its network, if it is to have one.
    ///
    /// # Errors
    /// What the network is made of is not there or cannot be used.
    pub fn connect(&mut self, plan: Option<NetPlan>) -> anyhow::Result<Option<NetConfig>> {
        let Some(plan) = plan else {
            return Ok(None);
        };
        let network = plan.connect()?;
        let device = network.device();
        self.identity.network = Some(Box::new(network.guest.clone()));
        self.network = Some(network);
        self.timeline.mark("network connected");
        Ok(Some(device))
    }

    /// Notes the stages in which a machine was made.
    pub fn mark_stages(&mut self, machine: &Machine) {
        self.timeline
            .add_durations("machine", machine.stages().iter().map(|s| (s.name, s.took)));
    }

    /// Ends before there was a machine: nothing is left behind.
    pub fn leave(self, error: &anyhow::Error) -> u8 {
        abandon(self.claim, &self.link, error)
    }

    /// The session of a machine that runs here.
    pub fn session(self, (machine, origin, bring_up, start): Running) -> (Session, Claim, bool) {
        let session = Session {
            machine,
            origin,
            dir: self.claim.dir().clone(),
            record: self.record,
            control: self.control,
            console: self.console,
            signals: self.signals,
            link: Some(self.link),
            timeline: self.timeline,
            bring_up,
            start,
            ready: false,
            size: None,
            has_agent: false,
            waiting: Vec::new(),
            stop: None,
            resizing: None,
            snapshotting: None,
            memory_asked: Vec::new(),
            memory_faults: self.memory_faults,
            network: self.network,
            template_watch: self.template_watch,
            tuning: None,
        };
        (session, self.claim, self.remove)
    }
}

/// What the log says when the guest's memory cannot be reached.
fn lost_line(memory: Option<&Path>) -> String {
    let why = match memory {
        Some(place) => format!(
            "what {} holds was cut short, or its disk is full",
            place.display()
        ),
        None => "the host's memory is damaged".to_owned(),
    };
    format!("Guest memory cannot be reached any more: {why}")
}

/// Whether the directory could be set up.
pub enum MovedIn {
    /// It could.
    Ready(Box<Premises>),
    /// It could not.
    Failed {
        claim: Claim,
        link: VmEnd,
        error: anyhow::Error,
    },
}

/// Tells the command that nothing was started, and returns the exit code.
pub fn fail(link: &VmEnd, error: &anyhow::Error) -> u8 {
    let code = exit_code(error);
    let not_reached = error.downcast_ref::<NotReached>();
    link.send(&Message::Failed {
        code,
        message: describe(error),
        size: not_reached.map(|error| Box::new(error.0.clone())),
    });
    code
}

/// Removes the VM's directory and tells the command that nothing was started.
pub fn abandon(claim: Claim, link: &VmEnd, error: &anyhow::Error) -> u8 {
    tracing::error!("{}", describe(error));
    if let Err(error) = claim.remove() {
        link.send(&Message::Notice(describe(&error)));
    }
    fail(link, error)
}
