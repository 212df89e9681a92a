//! The client against ttrpc's own server, and against peers that are dead, slow or wrong.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proto::frame::Frame;
use proto::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use proto::health_ttrpc::{Health, create_health};
use proto::{AgentClient, CallError};
use protobuf::Message;
use ttrpc::proto::MESSAGE_TYPE_RESPONSE;
use ttrpc::{Code, Response, Status, TtrpcContext};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

struct TestHealth;

impl Health for TestHealth {
    fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        let mut answer = HealthCheckResponse::new();
        answer.status = proto::health::health_check_response::ServingStatus::SERVING.into();
        Ok(answer)
    }

    fn version(&self, ctx: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        let grpc_version = ctx.timeout_nano.to_string();
        Ok(VersionCheckResponse {
            grpc_version,
            ..Default::default()
        })
    }
}

#[test]
fn ttrpc_server_answers_our_client() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let mut server = ttrpc::Server::new()
        .add_listener(listener.as_raw_fd())
        .unwrap()
        .register_service(create_health(Arc::new(TestHealth)));
    server.start().unwrap();

    let mut client = AgentClient::new(UnixStream::connect(&path).unwrap());
    client.check(LONG).unwrap();
    assert_eq!(
        client.version(LONG).unwrap().grpc_version,
        LONG.as_nanos().to_string()
    );
    let error = client.prepare(LONG).unwrap_err();
    assert!(
        matches!(
            error,
            CallError::Refused {
                code: Code::INVALID_ARGUMENT,
                ..
            }
        ),
        "{error:?}"
    );
    client.check(LONG).unwrap();

    drop(client);
    server.shutdown();
}

fn answered_by(peer: impl FnOnce(UnixStream) + Send + 'static) -> AgentClient {
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || peer(theirs));
    AgentClient::new(ours)
}

#[test]
fn silent_peer_ends_in_a_timeout_and_the_connection_is_not_used_again() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut client = AgentClient::new(ours);
    let error = client.check(SHORT).unwrap_err();
    assert!(
        matches!(
            error,
            CallError::Timeout {
                method: "Check",
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "Agent did not answer Check within 50 ms");
    let error = client.check(LONG).unwrap_err();
    assert!(matches!(error, CallError::Closed { .. }), "{error:?}");
    drop(theirs);
}

#[test]
fn peer_that_does_not_read_ends_in_a_timeout() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut client = AgentClient::new(ours);
    let data = vec![0; 3 << 20];
    let request = proto::agent::ReseedRandomDevRequest {
        data,
        ..Default::default()
    };
    let error = client.reseed_random_dev(&request, SHORT).unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error:?}");
    drop(theirs);
}

#[test]
fn trickling_peer_does_not_extend_the_deadline() {
    let mut client = answered_by(|mut stream| {
        let huge_answer = [0, 1, 0, 0, 0, 0, 0, 1, 2, 0];
        stream.write_all(&huge_answer).unwrap();
        while stream.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let error = client.check(SHORT).unwrap_err();
    assert!(matches!(error, CallError::Timeout { .. }), "{error:?}");
}

#[test]
fn peer_that_closes_is_reported_as_closed() {
    let mut client = answered_by(drop);
    let error = client.check(LONG).unwrap_err();
    assert!(
        matches!(error, CallError::Closed { method: "Check" }),
        "{error:?}"
    );
}

#[test]
fn oversized_answer_is_malformed() {
    let mut client = answered_by(|mut stream| {
        stream
            .write_all(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 2, 0])
            .unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let error = client.check(LONG).unwrap_err();
    assert!(matches!(error, CallError::Malformed { .. }), "{error:?}");
}

#[test]
fn answer_for_another_call_is_malformed() {
    let mut client = answered_by(|mut stream| {
        let payload = Response::new().write_to_bytes().unwrap();
        Frame {
            stream_id: 9,
            kind: MESSAGE_TYPE_RESPONSE,
            payload,
        }
        .write(&mut stream)
        .unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let error = client.check(LONG).unwrap_err();
    assert!(error.to_string().contains("call 9"), "{error}");
}

#[test]
fn garbage_payload_is_malformed() {
    let mut client = answered_by(|mut stream| {
        let payload = vec![0xff; 32];
        Frame {
            stream_id: 1,
            kind: MESSAGE_TYPE_RESPONSE,
            payload,
        }
        .write(&mut stream)
        .unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let error = client.check(LONG).unwrap_err();
    assert!(matches!(error, CallError::Malformed { .. }), "{error:?}");
}

#[test]
fn words_of_a_refusal_cannot_control_a_terminal_and_are_not_endless() {
    let message = "\x1b]0;title\x07\r\n".to_owned() + &"x".repeat(1 << 20);
    let mut client = answered_by(|mut stream| {
        let status = Status {
            code: Code::INTERNAL.into(),
            message,
            ..Default::default()
        };
        let response = Response {
            status: Some(status).into(),
            ..Default::default()
        };
        let answer = Frame {
            stream_id: 1,
            kind: MESSAGE_TYPE_RESPONSE,
            payload: response.write_to_bytes().unwrap(),
        };
        answer.write(&mut stream).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let text = client.check(LONG).unwrap_err().to_string();
    assert!(
        text.starts_with("Agent refused Check:  ]0;title   xxx"),
        "{text:.80}"
    );
    assert!(text.len() < 2048);
}
