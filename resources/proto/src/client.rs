//! Calls to an agent over one connected socket, each with a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protobuf::Message;
use protobuf::well_known_types::empty::Empty;
use ttrpc::proto::{MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE};
use ttrpc::{Code, Request, Response};

use crate::error::CallError;
use crate::frame::Frame;
use crate::{agent, guest, health};

/// Characters of a refusal that are passed on.
const MOST_CHARACTERS: usize = 1024;

const AGENT_SERVICE: &str = "grpc.AgentService";
const HEALTH_SERVICE: &str = "grpc.Health";
const GUEST_SERVICE: &str = "minivmm.v1.Guest";

/// A connection to an agent's ttrpc port. One call at a time.
///
/// After a call has failed for any reason but [`CallError::Refused`] the stream may hold half an
/// answer, so every later call reports [`CallError::Closed`].
#[derive(Debug)]
pub struct AgentClient {
    stream: UnixStream,
    next_stream_id: u32,
    broken: bool,
}

impl AgentClient {
    /// Takes over `stream`, which must be connected to [`AGENT_PORT`](crate::AGENT_PORT).
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            next_stream_id: 1,
            broken: false,
        }
    }

    /// Calls `service`/`method`. `None` as the time-out waits until the connection ends.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn call<Answer: Message>(
        &mut self,
        service: &str,
        method: &'static str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<Answer, CallError> {
        if self.broken {
            return Err(CallError::Closed { method });
        }
        let result = self.exchange(service, method, request, timeout);
        self.broken = !matches!(result, Ok(_) | Err(CallError::Refused { .. }));
        result
    }

    fn exchange<Answer: Message>(
        &mut self,
        service: &str,
        method: &'static str,
        request: &impl Message,
        timeout: Option<Duration>,
    ) -> Result<Answer, CallError> {
        let stream_id = self.next_stream_id;
        self.next_stream_id = stream_id.wrapping_add(2);
        let mut link = Link {
            stream: &self.stream,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        };
        let failed = |source: io::Error| classify(method, timeout, source);

        let payload = encode_request(service, method, request, timeout)?;
        let frame = Frame {
            stream_id,
            kind: MESSAGE_TYPE_REQUEST,
            payload,
        };
        frame.write(&mut link).map_err(failed)?;

        let answer = Frame::read(&mut link)
            .map_err(failed)?
            .ok_or(CallError::Closed { method })?;
        if answer.stream_id != stream_id || answer.kind != MESSAGE_TYPE_RESPONSE {
            let reason = format!(
                "frame of type {} for call {}, expected a response for call {stream_id}",
                answer.kind, answer.stream_id
            );
            return Err(CallError::Malformed { method, reason });
        }
        decode_answer(method, &answer.payload)
    }

    /// `grpc.Health/Check`: succeeds when the agent says that it is serving.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn check(&mut self, timeout: Duration) -> Result<(), CallError> {
        let request = health::CheckRequest::new();
        let answer: health::HealthCheckResponse =
            self.call(HEALTH_SERVICE, "Check", &request, Some(timeout))?;
        match answer.status.enum_value() {
            Ok(health::health_check_response::ServingStatus::SERVING) => Ok(()),
            other => {
                let reason = format!("status {other:?}, expected SERVING");
                Err(CallError::Malformed {
                    method: "Check",
                    reason,
                })
            }
        }
    }

    /// `grpc.Health/Version`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn version(
        &mut self,
        timeout: Duration,
    ) -> Result<health::VersionCheckResponse, CallError> {
        self.call(
            HEALTH_SERVICE,
            "Version",
            &health::CheckRequest::new(),
            Some(timeout),
        )
    }

    /// `grpc.AgentService/ReseedRandomDev`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn reseed_random_dev(
        &mut self,
        request: &agent::ReseedRandomDevRequest,
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.call(AGENT_SERVICE, "ReseedRandomDev", request, Some(timeout))
            .map(|_: Empty| ())
    }

    /// `grpc.AgentService/SetGuestDateTime`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn set_guest_date_time(
        &mut self,
        request: &agent::SetGuestDateTimeRequest,
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.call(AGENT_SERVICE, "SetGuestDateTime", request, Some(timeout))
            .map(|_: Empty| ())
    }

    /// `grpc.AgentService/OnlineCPUMem`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn online_cpu_mem(
        &mut self,
        request: &agent::OnlineCPUMemRequest,
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.call(AGENT_SERVICE, "OnlineCPUMem", request, Some(timeout))
            .map(|_: Empty| ())
    }

    /// `grpc.AgentService/GetGuestDetails`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn get_guest_details(
        &mut self,
        request: &agent::GuestDetailsRequest,
        timeout: Duration,
    ) -> Result<agent::GuestDetailsResponse, CallError> {
        self.call(AGENT_SERVICE, "GetGuestDetails", request, Some(timeout))
    }

    /// `minivmm.v1.Guest/Adopt`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn adopt(
        &mut self,
        request: &guest::AdoptRequest,
        timeout: Duration,
    ) -> Result<guest::AdoptResponse, CallError> {
        self.call(GUEST_SERVICE, "Adopt", request, Some(timeout))
    }

    /// `minivmm.v1.Guest/Prepare`, after which the connection is closed if the agent says so: when this
    /// returns, the agent has no part of it any more.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn prepare(&mut self, timeout: Duration) -> Result<guest::PrepareResponse, CallError> {
        const METHOD: &str = "Prepare";
        let request = guest::PrepareRequest::new();
        let answer: guest::PrepareResponse =
            self.call(GUEST_SERVICE, METHOD, &request, Some(timeout))?;
        if answer.closes {
            self.broken = true;
            let mut link = Link {
                stream: &self.stream,
                deadline: Instant::now().checked_add(timeout),
            };
            match Frame::read(&mut link) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    let reason = format!("frame of type {}, expected the end", frame.kind);
                    return Err(CallError::Malformed {
                        method: METHOD,
                        reason,
                    });
                }
                Err(source) => return Err(classify(METHOD, Some(timeout), source)),
            }
        }
        Ok(answer)
    }

    /// `minivmm.v1.Guest/Hold`. `timeout` should exceed the request's own.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn hold(
        &mut self,
        request: &guest::HoldRequest,
        timeout: Duration,
    ) -> Result<guest::HoldResponse, CallError> {
        self.call(GUEST_SERVICE, "Hold", request, Some(timeout))
    }

    /// `minivmm.v1.Guest/Release`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn release(&mut self, timeout: Duration) -> Result<guest::ReleaseResponse, CallError> {
        self.call(
            GUEST_SERVICE,
            "Release",
            &guest::ReleaseRequest::new(),
            Some(timeout),
        )
    }

    /// `minivmm.v1.Guest/Online`. `timeout` should exceed the request's own.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn online(
        &mut self,
        request: &guest::OnlineRequest,
        timeout: Duration,
    ) -> Result<guest::OnlineResponse, CallError> {
        self.call(GUEST_SERVICE, "Online", request, Some(timeout))
    }

    /// `minivmm.v1.Guest/Exec`: returns the command's id, for [`stdio`](crate::stdio) and the
    /// calls below.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn exec(
        &mut self,
        request: &guest::ExecRequest,
        timeout: Duration,
    ) -> Result<String, CallError> {
        let answer: guest::ExecResponse =
            self.call(GUEST_SERVICE, "Exec", request, Some(timeout))?;
        Ok(answer.exec_id)
    }

    /// `minivmm.v1.Guest/Exec` of a command that is to be detached: returns its id once it runs.
    ///
    /// # Errors
    ///
    /// See [`CallError`]; refused as `UNIMPLEMENTED` for an agent that does not know how.
    pub fn exec_detached(
        &mut self,
        request: &guest::ExecRequest,
        timeout: Duration,
    ) -> Result<String, CallError> {
        let answer: guest::ExecResponse =
            self.call(GUEST_SERVICE, "Exec", request, Some(timeout))?;
        if answer.detached {
            return Ok(answer.exec_id);
        }
        Err(CallError::Refused {
            method: "Exec",
            code: Code::UNIMPLEMENTED,
            message: "the guest's agent knows no detached commands; build the guest anew with \
                      'minivmm guest build'"
                .to_owned(),
        })
    }

    /// `minivmm.v1.Guest/Wait`: blocks until the command has ended or the connection has.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn wait(&mut self, exec_id: &str) -> Result<guest::WaitResponse, CallError> {
        let request = guest::WaitRequest {
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.call(GUEST_SERVICE, "Wait", &request, None)
    }

    /// `minivmm.v1.Guest/Signal`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn signal(
        &mut self,
        request: &guest::SignalRequest,
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.call(GUEST_SERVICE, "Signal", request, Some(timeout))
            .map(|_: Empty| ())
    }

    /// `minivmm.v1.Guest/Resize`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn resize(
        &mut self,
        request: &guest::ResizeRequest,
        timeout: Duration,
    ) -> Result<(), CallError> {
        self.call(GUEST_SERVICE, "Resize", request, Some(timeout))
            .map(|_: Empty| ())
    }

    /// `minivmm.v1.Guest/Shutdown`.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub fn shutdown(
        &mut self,
        action: guest::shutdown_request::Action,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let request = guest::ShutdownRequest {
            action: action.into(),
            ..Default::default()
        };
        self.call(GUEST_SERVICE, "Shutdown", &request, Some(timeout))
            .map(|_: Empty| ())
    }
}

fn encode_request(
    service: &str,
    method: &'static str,
    request: &impl Message,
    timeout: Option<Duration>,
) -> Result<Vec<u8>, CallError> {
    let unencodable = |error: protobuf::Error| CallError::Io {
        method,
        source: error.into(),
    };
    let envelope = Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: request.write_to_bytes().map_err(unencodable)?,
        timeout_nano: timeout.map_or(0, |timeout| {
            i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX)
        }),
        ..Default::default()
    };
    envelope.write_to_bytes().map_err(unencodable)
}

fn decode_answer<Answer: Message>(
    method: &'static str,
    payload: &[u8],
) -> Result<Answer, CallError> {
    let malformed = |error: protobuf::Error| CallError::Malformed {
        method,
        reason: error.to_string(),
    };
    let envelope = Response::parse_from_bytes(payload).map_err(malformed)?;
    let code = envelope.status.code.enum_value_or(Code::UNKNOWN);
    if code != Code::OK {
        let message = printable(&envelope.status.message);
        return Err(CallError::Refused {
            method,
            code,
            message,
        });
    }
    Answer::parse_from_bytes(&envelope.payload).map_err(malformed)
}

/// The guest's words, which end up in a terminal or a log: not too many, and no control characters.
fn printable(message: &str) -> String {
    let characters = message.chars().take(MOST_CHARACTERS);
    characters
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn classify(method: &'static str, timeout: Option<Duration>, source: io::Error) -> CallError {
    match (source.kind(), timeout) {
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, Some(timeout)) => {
            CallError::Timeout { method, timeout }
        }
        (ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset, _) => {
            CallError::Closed { method }
        }
        (ErrorKind::InvalidData, _) => CallError::Malformed {
            method,
            reason: source.to_string(),
        },
        _ => CallError::Io { method, source },
    }
}

/// A socket whose every read and write ends at the deadline, however the bytes trickle.
struct Link<'a> {
    stream: &'a UnixStream,
    deadline: Option<Instant>,
}

impl Link<'_> {
    fn remaining(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else {
            return Ok(None);
        };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(ErrorKind::TimedOut.into()),
        }
    }
}

impl Read for Link<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.remaining()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Link<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.remaining()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
