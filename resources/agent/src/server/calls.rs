//! Every call that the agent answers.

use std::time::Duration;

use proto::agent::{
    AgentDetails, GuestDetailsRequest, GuestDetailsResponse, OnlineCPUMemRequest,
    ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use proto::guest::shutdown_request::Action;
use proto::guest::{
    ExecRequest, ExecResponse, HoldRequest, HoldResponse, OnlineRequest, OnlineResponse,
    PrepareResponse, ReleaseResponse, ResizeRequest, ShutdownRequest, SignalRequest, WaitRequest,
};
use proto::health::health_check_response::ServingStatus;
use proto::health::{HealthCheckResponse, VersionCheckResponse};
use protobuf::Message;
use protobuf::well_known_types::empty::Empty;
use ttrpc::{Code, Request};

use crate::error::{Error, Refusal};
use crate::exec::table::Table;
use crate::machine::hold::Holder;
use crate::machine::hotplug::{self, Reached, Wanted};
use crate::machine::{Machine, clock, memory};
use crate::server::adoption;
use crate::server::connection::{Answer, unknown};
use crate::server::jobs::Jobs;
use crate::{VERSION, say};

/// How long OnlineCPUMem waits when its caller sets no limit.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(10);

/// Who made a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caller {
    /// The number of the connection.
    pub connection: u32,
    /// The call's stream id on it.
    pub stream_id: u32,
}

/// What becomes of a call.
#[derive(Debug)]
pub enum Outcome {
    /// It is answered now.
    Answer(Answer),
    /// Whoever took the caller answers it.
    Later,
    /// It is answered, and then the caller's connection is closed.
    AnswerAndClose(Answer),
    /// It is answered, and then the guest ends.
    AnswerAndEnd(Answer, Action),
}

/// What the calls work on.
#[derive(Debug)]
pub struct Services {
    /// The guest; none where the agent serves a Unix socket on a machine that is somebody else's,
    /// and may run commands only.
    pub machine: Option<Machine>,
    /// The commands.
    pub commands: Table,
    /// Work that must not hold up the rest.
    pub jobs: Jobs,
}

impl Services {
    /// Carries out one call.
    pub fn call(&mut self, caller: Caller, request: &Request) -> Outcome {
        match (request.service.as_str(), request.method.as_str()) {
            ("minivmm.v1.Guest", "Wait") => self.wait(caller, &request.payload),
            ("minivmm.v1.Guest", "Online") => self.online(caller, &request.payload),
            ("grpc.AgentService", "OnlineCPUMem") => self.online_cpu_mem(caller, request),
            ("minivmm.v1.Guest", "Prepare") => match self.prepare() {
                Ok(response) => Outcome::AnswerAndClose(encode(&response)),
                Err(refusal) => Outcome::Answer(Err(refusal)),
            },
            ("minivmm.v1.Guest", "Shutdown") => self.shutdown(&request.payload),
            ("minivmm.v1.Guest", "Hold") => Outcome::Answer(self.hold(caller, &request.payload)),
            _ => Outcome::Answer(self.answer(request)),
        }
    }

    fn machine(&mut self, method: &str) -> Result<&mut Machine, Refusal> {
        self.machine.as_mut().ok_or_else(|| {
            Refusal::new(
                Code::FAILED_PRECONDITION,
                format!("{method} changes the whole machine; the agent on a Unix socket does not"),
            )
        })
    }

    fn answer(&mut self, request: &Request) -> Answer {
        let payload = &request.payload;
        match (request.service.as_str(), request.method.as_str()) {
            ("grpc.Health", "Check") => encode(&HealthCheckResponse {
                status: ServingStatus::SERVING.into(),
                ..Default::default()
            }),
            ("grpc.Health", "Version") => encode(&VersionCheckResponse {
                grpc_version: "0.0.1".to_owned(),
                agent_version: VERSION.to_owned(),
                ..Default::default()
            }),
            ("grpc.AgentService", "GetGuestDetails") => encode(&guest_details(&decode(payload)?)?),
            ("grpc.AgentService", "ReseedRandomDev") => self.reseed(&decode(payload)?),
            ("grpc.AgentService", "SetGuestDateTime") => self.set_date_time(&decode(payload)?),
            ("minivmm.v1.Guest", "Adopt") => {
                encode(&adoption::adopt(self.machine("Adopt"), &decode(payload)?)?)
            }
            ("minivmm.v1.Guest", "Release") => encode(&self.release()?),
            ("minivmm.v1.Guest", "Exec") => self.exec(decode(payload)?),
            ("minivmm.v1.Guest", "Signal") => {
                let request: SignalRequest = decode(payload)?;
                self.commands.signal(&request.exec_id, request.signal)?;
                encode(&Empty::new())
            }
            ("minivmm.v1.Guest", "Resize") => {
                let request: ResizeRequest = decode(payload)?;
                self.commands
                    .resize(&request.exec_id, request.rows, request.cols)?;
                encode(&Empty::new())
            }
            _ => Err(unknown(request)),
        }
    }

    fn exec(&mut self, request: ExecRequest) -> Answer {
        // One with streams starts when they are attached, which has to wait for the same thing.
        if request.detach && self.is_holding() {
            return Err(Refusal::new(
                Code::UNAVAILABLE,
                "The guest's processes are held while it is saved; no command can be started now",
            ));
        }
        encode(&ExecResponse {
            detached: request.detach,
            exec_id: self.commands.create(request)?,
            ..Default::default()
        })
    }

    fn prepare(&mut self) -> Result<PrepareResponse, Refusal> {
        let machine = self.machine("Prepare")?;
        machine.look_ahead()?;
        let held = machine.held.hold();
        if let Err(error) = held {
            say(&format!(
                "Processes go on in the template, and in a clone before it has an identity: {error}"
            ));
        }
        memory::drop_caches()?;
        let usage = memory::usage();
        Ok(PrepareResponse {
            dropped: true,
            mem_free_bytes: usage.free_bytes,
            mem_total_bytes: usage.total_bytes,
            closes: true,
            ..Default::default()
        })
    }

    fn hold(&mut self, caller: Caller, payload: &[u8]) -> Answer {
        let request: HoldRequest = decode(payload)?;
        let machine = self.machine("Hold")?;
        if machine.held.is_on() {
            return Err(Refusal::new(
                Code::FAILED_PRECONDITION,
                "The guest's processes are held already",
            ));
        }
        machine.look_ahead()?;
        let holder = Holder {
            connection: caller.connection,
            cid: machine.vsock.local_cid(),
        };
        let timeout = Duration::from_millis(u64::from(request.timeout_ms));
        encode(&HoldResponse {
            held: machine.held.hold_for(holder, timeout)?,
            ..Default::default()
        })
    }

    fn release(&mut self) -> Result<ReleaseResponse, Refusal> {
        let held = self.machine("Release")?.held.release()?;
        Ok(ReleaseResponse {
            held_ns: u64::try_from(held.as_nanos()).unwrap_or(u64::MAX),
            ..Default::default()
        })
    }

    /// Whether no process may be started.
    pub fn is_holding(&self) -> bool {
        self.machine
            .as_ref()
            .is_some_and(|machine| machine.held.is_on())
    }

    /// A caller has gone: its commands run on, what it held goes on.
    pub fn forget_caller(&mut self, connection: u32) {
        self.commands.forget_callers(connection);
        if let Some(machine) = &mut self.machine {
            let cid = machine.vsock.local_cid();
            if let Err(error) = machine.held.connection_ended(connection, cid) {
                say(&error.to_string());
            }
        }
    }

    fn reseed(&mut self, request: &ReseedRandomDevRequest) -> Answer {
        if request.data.is_empty() {
            return Err(Refusal::invalid("ReseedRandomDev without data"));
        }
        let machine = self.machine("ReseedRandomDev")?;
        machine.entropy.reseed(&request.data)?;
        machine.held.release()?;
        encode(&Empty::new())
    }

    fn set_date_time(&mut self, request: &SetGuestDateTimeRequest) -> Answer {
        let nanoseconds = clock::nanoseconds(request.Sec, request.Usec)?;
        self.machine("SetGuestDateTime")?;
        clock::set_realtime(nanoseconds)?;
        encode(&Empty::new())
    }

    fn wait(&mut self, caller: Caller, payload: &[u8]) -> Outcome {
        let waited = decode(payload)
            .and_then(|request: WaitRequest| self.commands.wait(&request.exec_id, caller));
        match waited {
            Ok(()) => Outcome::Later,
            Err(refusal) => Outcome::Answer(Err(refusal)),
        }
    }

    fn online(&mut self, caller: Caller, payload: &[u8]) -> Outcome {
        let mut start = || -> Result<(), Refusal> {
            let request: OnlineRequest = decode(payload)?;
            let boot_memory_bytes = self.machine("Online")?.boot_memory_bytes;
            let mem_total_bytes = match request.added_bytes {
                0 => request.mem_total_bytes,
                added => boot_memory_bytes
                    .saturating_add(added)
                    .max(request.mem_total_bytes),
            };
            let wanted = Wanted {
                cpus: request.cpus,
                memory: true,
                mem_total_bytes,
            };
            let timeout = Duration::from_millis(u64::from(request.timeout_ms));
            self.jobs.start(caller, move || {
                encode(&online_response(hotplug::online(&wanted, timeout)?))
            })
        };
        start().map_or_else(|refusal| Outcome::Answer(Err(refusal)), |()| Outcome::Later)
    }

    fn online_cpu_mem(&mut self, caller: Caller, request: &Request) -> Outcome {
        let mut start = || -> Result<Outcome, Refusal> {
            let OnlineCPUMemRequest {
                wait,
                nb_cpus,
                cpu_only,
                ..
            } = decode(&request.payload)?;
            self.machine("OnlineCPUMem")?;
            let wanted = Wanted {
                cpus: nb_cpus,
                memory: !cpu_only,
                mem_total_bytes: 0,
            };
            let timeout = match u64::try_from(request.timeout_nano) {
                Ok(0) | Err(_) => ONLINE_TIMEOUT,
                Ok(nanoseconds) => ONLINE_TIMEOUT.min(Duration::from_nanos(nanoseconds)),
            };
            let job = move || cpu_mem_answer(&wanted, &hotplug::online(&wanted, timeout)?);
            if wait {
                self.jobs.start(caller, job)?;
                return Ok(Outcome::Later);
            }
            self.jobs.start_unanswered(job)?;
            Ok(Outcome::Answer(encode(&Empty::new())))
        };
        start().unwrap_or_else(|refusal| Outcome::Answer(Err(refusal)))
    }

    fn shutdown(&mut self, payload: &[u8]) -> Outcome {
        let mut action = || -> Result<Action, Refusal> {
            let request: ShutdownRequest = decode(payload)?;
            self.machine("Shutdown")?;
            request.action.enum_value().map_err(|number| {
                Refusal::invalid(format!("Action {number}: expected 0 (power off), 1 or 2"))
            })
        };
        match action() {
            Ok(action) => Outcome::AnswerAndEnd(encode(&Empty::new()), action),
            Err(refusal) => Outcome::Answer(Err(refusal)),
        }
    }
}

fn guest_details(request: &GuestDetailsRequest) -> Result<GuestDetailsResponse, Error> {
    let details = AgentDetails {
        version: VERSION.to_owned(),
        init_daemon: std::process::id() == 1,
        ..Default::default()
    };
    Ok(GuestDetailsResponse {
        mem_block_size_bytes: match request.mem_block_size {
            true => hotplug::block_size_bytes()?,
            false => 0,
        },
        agent_details: Some(details).into(),
        support_mem_hotplug_probe: request.mem_hotplug_probe && hotplug::has_probe(),
        ..Default::default()
    })
}

fn online_response(reached: Reached) -> OnlineResponse {
    OnlineResponse {
        online_cpus: reached.online_cpus,
        present_cpus: reached.present_cpus,
        mem_total_bytes: reached.mem_total_bytes,
        online_blocks: reached.online_blocks,
        has_memory: reached.has_memory,
        offline_blocks: reached.offline_blocks,
        refused: reached.refused.join("; "),
        ..Default::default()
    }
}

fn cpu_mem_answer(wanted: &Wanted, reached: &Reached) -> Answer {
    if reached.online_cpus < wanted.cpus {
        return Err(Refusal::new(
            Code::DEADLINE_EXCEEDED,
            format!(
                "{} CPUs of {} are online, {} are there",
                reached.online_cpus, wanted.cpus, reached.present_cpus
            ),
        ));
    }
    encode(&Empty::new())
}

fn decode<M: Message>(payload: &[u8]) -> Result<M, Refusal> {
    M::parse_from_bytes(payload)
        .map_err(|error| Refusal::invalid(format!("Malformed request: {error}")))
}

fn encode(message: &impl Message) -> Answer {
    message
        .write_to_bytes()
        .map_err(|error| Refusal::new(Code::INTERNAL, error.to_string()))
}
