//! The calls that are not about commands, and peers that misbehave.

#![expect(
    clippy::unwrap_used,
    reason = "a test helper may panic as its test may"
)]

mod support;

use std::io::{Read, Write};

use proto::agent::{
    GuestDetailsRequest, OnlineCPUMemRequest, ReseedRandomDevRequest, SetGuestDateTimeRequest,
};
use proto::guest::shutdown_request::Action;
use proto::guest::{AdoptRequest, HoldRequest, OnlineRequest};
use proto::health::CheckRequest;
use proto::health_ttrpc::HealthClient;
use proto::{AgentClient, CallError};
use protobuf::well_known_types::empty::Empty;
use support::{Agent, TIMEOUT};
use ttrpc::{Code, context};

fn code_of<T: std::fmt::Debug>(result: Result<T, CallError>) -> Code {
    match result {
        Err(CallError::Refused { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn health_and_details_are_answered() {
    let mut client = Agent::start().client();
    assert!(client.check(TIMEOUT).is_err());

    let agent = Agent::start();
    let mut client = agent.client();
    client.check(TIMEOUT).unwrap();
    let version = client.version(TIMEOUT).unwrap();
    assert_eq!(version.agent_version, env!("CARGO_PKG_VERSION"));
    let details = client
        .get_guest_details(&GuestDetailsRequest::new(), TIMEOUT)
        .unwrap();
    assert_eq!(details.agent_details.version, version.agent_version);
    assert!(!details.agent_details.init_daemon);
    assert_eq!(details.mem_block_size_bytes, 0);
}

#[test]
fn ttrpcs_own_client_is_answered() {
    let agent = Agent::start();
    let fd = std::os::fd::IntoRawFd::into_raw_fd(agent.connect());
    let health = HealthClient::new(ttrpc::Client::new(fd).unwrap());
    for _ in 0..3 {
        let answer = health.version(context::with_duration(TIMEOUT), &CheckRequest::new());
        assert_eq!(answer.unwrap().agent_version, env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn calls_of_kata_that_are_not_served_are_unimplemented() {
    let agent = Agent::start();
    let mut client = agent.client();
    let result: Result<Empty, _> = client.call(
        "grpc.AgentService",
        "CreateSandbox",
        &Empty::new(),
        Some(TIMEOUT),
    );
    assert_eq!(code_of(result), Code::UNIMPLEMENTED);
    client.check(TIMEOUT).unwrap();
}

/// These would change the machine that the tests run on, so the agent on a Unix socket refuses.
#[test]
fn machine_is_out_of_bounds_on_a_unix_socket() {
    let agent = Agent::start();
    let mut client = agent.client();
    let adopt = AdoptRequest {
        entropy: vec![1; 64],
        ..Default::default()
    };
    let reseed = ReseedRandomDevRequest {
        data: vec![1; 64],
        ..Default::default()
    };
    let online = OnlineCPUMemRequest::new();
    let codes = [
        code_of(client.adopt(&adopt, TIMEOUT)),
        code_of(client.prepare(TIMEOUT)),
        code_of(client.hold(&HoldRequest::new(), TIMEOUT)),
        code_of(client.release(TIMEOUT)),
        code_of(client.reseed_random_dev(&reseed, TIMEOUT)),
        code_of(client.set_guest_date_time(&SetGuestDateTimeRequest::new(), TIMEOUT)),
        code_of(client.online_cpu_mem(&online, TIMEOUT)),
        code_of(client.online(&OnlineRequest::new(), TIMEOUT)),
        code_of(client.shutdown(Action::POWEROFF, TIMEOUT)),
    ];
    assert_eq!(codes, [Code::FAILED_PRECONDITION; 9]);
}

#[test]
fn wrong_adoptions_are_refused_before_anything_changes() {
    let agent = Agent::start();
    let mut client = agent.client();
    let good = AdoptRequest {
        entropy: vec![1; 64],
        ..Default::default()
    };
    let wrong = [
        AdoptRequest {
            entropy: vec![1; 63],
            ..good.clone()
        },
        AdoptRequest {
            generation_id: vec![1; 15],
            ..good.clone()
        },
        AdoptRequest {
            realtime_ns: -1,
            ..good.clone()
        },
        AdoptRequest {
            hostname: "a b".into(),
            ..good.clone()
        },
        AdoptRequest {
            machine_id: "xyz".into(),
            ..good
        },
    ];
    for request in wrong {
        assert_eq!(
            code_of(client.adopt(&request, TIMEOUT)),
            Code::INVALID_ARGUMENT
        );
    }
    let empty = ReseedRandomDevRequest::new();
    assert_eq!(
        code_of(client.reseed_random_dev(&empty, TIMEOUT)),
        Code::INVALID_ARGUMENT
    );
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let agent = Agent::start();
    let mut client = agent.client();
    let mut wrong = agent.connect();
    wrong.write_all(&[0xff; 64]).unwrap();
    assert_eq!(wrong.read(&mut [0; 16]).unwrap(), 0);
    client.check(TIMEOUT).unwrap();
}

#[test]
fn request_in_small_pieces_is_answered() {
    let agent = Agent::start();
    let (request, mut capture) = std::os::unix::net::UnixStream::pair().unwrap();
    let sender = std::thread::spawn(move || AgentClient::new(request).check(TIMEOUT));
    let mut agent_side = agent.connect();
    let mut byte = [0];
    let mut header = Vec::new();
    while header.len() < 10 {
        capture.read_exact(&mut byte).unwrap();
        header.push(byte[0]);
        agent_side.write_all(&byte).unwrap();
    }
    for _ in 0..u32::from_be_bytes(header[..4].try_into().unwrap()) {
        capture.read_exact(&mut byte).unwrap();
        agent_side.write_all(&byte).unwrap();
    }
    let frame = proto::frame::Frame::read(&mut agent_side).unwrap().unwrap();
    frame.write(&mut capture).unwrap();
    sender.join().unwrap().unwrap();
}

#[test]
fn many_connections_are_served_by_one_thread() {
    let agent = Agent::start();
    let mut clients: Vec<_> = (0..200).map(|_| agent.client()).collect();
    for client in &mut clients {
        client.check(TIMEOUT).unwrap();
    }
    assert_eq!(agent.threads(), 1);
}
