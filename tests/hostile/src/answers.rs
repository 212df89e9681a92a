//! Target `answers`: what a hostile agent in the guest answers to the host's calls.

use crate::input::actions;
use crate::machine::must;
use arbitrary::Arbitrary;
use proto::forward::Target;
use proto::frame::Frame;
use proto::guest::shutdown_request::Action;
use proto::stdio::Attach;
use proto::{AgentClient, CallError, agent, guest};
use protobuf::{EnumOrUnknown, Message};
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use ttrpc::proto::MESSAGE_TYPE_RESPONSE;
use ttrpc::{Response, Status};

/// A call ends at the end of the stream, so this only tells a hang.
const LONG: Duration = Duration::from_secs(5);
/// What fits the socket without anybody reading.
const MOST_BYTES: usize = 64 * 1024;
/// The longest message of a refusal that is passed on, and room for the words around it.
const LONGEST_ERROR: usize = 8 * 1024;

#[derive(Debug, Arbitrary)]
enum Answer<'a> {
    /// The bytes themselves.
    Bytes(&'a [u8]),
    /// A frame, that may be of another kind or for another call.
    Frame(u8, u8, &'a [u8]),
    /// What the call is to be answered with, but with this status, and this as the message.
    Status(u8, i32, &'a str, &'a [u8]),
}

impl Answer<'_> {
    fn bytes(&self) -> Vec<u8> {
        let (stream_id, kind, payload) = match self {
            Self::Bytes(bytes) => return bytes.to_vec(),
            Self::Frame(stream_id, kind, payload) => (*stream_id, *kind, payload.to_vec()),
            Self::Status(stream_id, code, message, payload) => {
                let status = Status {
                    code: EnumOrUnknown::from_i32(*code),
                    message: (*message).to_owned(),
                    ..Default::default()
                };
                let response = Response {
                    status: Some(status).into(),
                    payload: payload.to_vec(),
                    ..Default::default()
                };
                let payload = must(response.write_to_bytes());
                (*stream_id, MESSAGE_TYPE_RESPONSE, payload)
            }
        };
        let frame = Frame {
            stream_id: stream_id.into(),
            kind,
            payload,
        };
        let mut bytes = Vec::new();
        must(frame.write(&mut bytes));
        bytes
    }
}

/// Makes a call after the other while there are answers.
pub fn run(bytes: &[u8]) {
    let (&first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let (ours, mut theirs) = must(UnixStream::pair());
    let mut answers = 0_u8;
    for answer in actions::<Answer<'_>>(rest).take(4) {
        let bytes = answer.bytes();
        must(theirs.write_all(&bytes[..bytes.len().min(MOST_BYTES / 4)]));
        answers += 1;
    }
    must(theirs.shutdown(Shutdown::Write));

    let mut client = AgentClient::new(ours);
    let start = Instant::now();
    for number in 0..answers.max(1) {
        if let Err(error) = call(&mut client, first.wrapping_add(number)) {
            let text = error.to_string();
            assert!(
                text.len() <= LONGEST_ERROR,
                "an error of {} bytes",
                text.len()
            );
            assert!(
                !text.contains(char::is_control),
                "controls a terminal: {text:?}"
            );
            assert!(!matches!(error, CallError::Timeout { .. }), "{text}");
        }
    }
    assert!(start.elapsed() < LONG, "no end of the stream");
    if let Ok(line) = std::str::from_utf8(rest) {
        drop(line.parse::<Attach>());
        drop(line.parse::<Target>());
    }
}

fn call(client: &mut AgentClient, which: u8) -> Result<(), CallError> {
    match which % 12 {
        0 => client.check(LONG),
        1 => client.version(LONG).map(drop),
        2 => client.reseed_random_dev(&agent::ReseedRandomDevRequest::new(), LONG),
        3 => client.set_guest_date_time(&agent::SetGuestDateTimeRequest::new(), LONG),
        4 => client.online_cpu_mem(&agent::OnlineCPUMemRequest::new(), LONG),
        5 => {
            let request = agent::GuestDetailsRequest::new();
            client.get_guest_details(&request, LONG).map(drop)
        }
        6 => client.adopt(&guest::AdoptRequest::new(), LONG).map(drop),
        7 => client.prepare(LONG).map(drop),
        8 => client.online(&guest::OnlineRequest::new(), LONG).map(drop),
        9 => client.exec(&guest::ExecRequest::new(), LONG).map(drop),
        10 => client.wait("1").map(drop),
        _ => client.shutdown(Action::POWEROFF, LONG),
    }
}
