//! Tests of the agent's use against an agent made of a thread.

use std::thread::JoinHandle;

use proto::frame::Frame;
use protobuf::Message;
use ttrpc::{Request, Response};

use super::*;

/// Serves calls until the client leaves and returns the methods that were called. `minivmm.v1`
/// calls are unknown to it if `kata`.
fn serve(stream: UnixStream, kata: bool) -> JoinHandle<Vec<String>> {
    serve_late(stream, kata, Duration::ZERO)
}

/// The first answer is late. On a machine that has other things to do the others may be, too, and
/// the time is set more than once: that counts as one call.
fn serve_late(stream: UnixStream, kata: bool, late: Duration) -> JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut called: Vec<String> = Vec::new();
        while let Some(frame) = Frame::read(&mut &stream).unwrap() {
            let request = Request::parse_from_bytes(&frame.payload).unwrap();
            let mut response = Response::new();
            if kata && request.service == "minivmm.v1.Guest" {
                response.mut_status().set_code(Code::UNIMPLEMENTED);
            } else {
                response.payload = answer(&request);
            }
            if called.is_empty() {
                std::thread::sleep(late);
            }
            called.push(request.method);
            called.dedup();
            let answer = Frame {
                stream_id: frame.stream_id,
                kind: ttrpc::proto::MESSAGE_TYPE_RESPONSE,
                payload: response.write_to_bytes().unwrap(),
            };
            answer.write(&mut &stream).unwrap();
        }
        called
    })
}

fn answer(request: &Request) -> Vec<u8> {
    match request.method.as_str() {
        "Adopt" => {
            let asked = guest::AdoptRequest::parse_from_bytes(&request.payload).unwrap();
            assert!(asked.entropy.len() >= MIN_ENTROPY_BYTES);
            assert_eq!(asked.hostname, "vm-1");
            assert_eq!(asked.machine_id.len(), 32);
            guest::AdoptResponse {
                online_cpus: 2,
                memory_bytes: 7,
                agent_version: "1".to_owned(),
                // As an agent that counts the time since then itself.
                clock_is_exact: asked.tsc_khz == 2_500_000 && asked.tsc == 7,
                hooks: vec![hook("10-a", ""), hook("20-b", "ended with exit code 7")],
                ..Default::default()
            }
            .write_to_bytes()
            .unwrap()
        }
        "SetGuestDateTime" => {
            let asked = agent::SetGuestDateTimeRequest::parse_from_bytes(&request.payload).unwrap();
            assert!(asked.Sec > 1_700_000_000);
            Vec::new()
        }
        _ => Vec::new(),
    }
}

fn hook(name: &str, failure: &str) -> guest::HookResult {
    guest::HookResult {
        name: name.to_owned(),
        failure: failure.to_owned(),
        output: "one\n\u{1b}[2Jtwo".to_owned(),
        ..Default::default()
    }
}

fn identity() -> Identity {
    Identity::new(&"vm-1".parse().unwrap()).unwrap()
}

#[test]
fn one_call_adopts() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve(theirs, false);
    let adopted = Agent::over(ours).adopt(&identity(), PROMPT).unwrap();
    assert_eq!((adopted.online_cpus, adopted.memory_bytes), (2, 7));
    let failed = HookFailed(adopted.failed_hook().unwrap().clone());
    assert_eq!(
        failed.to_string(),
        "Hook 20-b of the guest ended with exit code 7; its output ends with:\none\n\u{fffd}[2Jtwo"
    );
    assert_eq!(server.join().unwrap()[0], "Adopt");
}

#[test]
fn slow_guest_is_told_the_time_again() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve_late(theirs, false, 2 * TIME_TOLERANCE);
    Agent::over(ours).adopt(&identity(), PROMPT).unwrap();
    assert_eq!(server.join().unwrap(), ["Adopt", "SetGuestDateTime"]);
}

#[test]
fn a_guest_that_knows_how_late_it_is_is_told_the_time_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve_late(theirs, false, 2 * TIME_TOLERANCE);
    let begun = Some(Moment {
        realtime: SystemTime::now(),
        at: Instant::now(),
        tsc: 7,
        tsc_khz: 2_500_000,
    });
    let identity = Identity {
        begun,
        ..identity()
    };
    Agent::over(ours).adopt(&identity, PROMPT).unwrap();
    assert_eq!(server.join().unwrap(), ["Adopt"]);
}

#[test]
fn katas_agent_is_adopted_by_its_own_calls() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve(theirs, true);
    let mut agent = Agent::over(ours);
    let adopted = agent.adopt(&identity(), PROMPT).unwrap();
    agent.prepare(PROMPT).unwrap();
    drop(agent);
    assert_eq!(adopted, Adopted::default());
    let called = server.join().unwrap();
    assert_eq!(
        called,
        [
            "Adopt",
            "ReseedRandomDev",
            "SetGuestDateTime",
            "Version",
            "Prepare"
        ]
    );
}

#[test]
fn a_dead_agent_is_an_error_at_the_deadline() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Agent::over(ours)
        .adopt(&identity(), Duration::from_millis(20))
        .unwrap_err();
    assert!(error.to_string().contains("Adopt within 20 ms"), "{error}");
}

#[test]
fn processes_are_held_by_an_agent_that_knows_how_and_answers() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = serve(theirs, true);
    let error = Agent::over(ours).hold(PROMPT).unwrap_err();
    assert!(error.to_string().contains("guest build"), "{error}");
    assert_eq!(server.join().unwrap(), ["Hold"]);

    let (ours, _theirs) = UnixStream::pair().unwrap();
    let error = Agent::over(ours)
        .hold(Duration::from_millis(20))
        .unwrap_err();
    assert!(error.to_string().contains("Hold within"), "{error}");
}

#[test]
fn identities_differ_and_their_cids_are_usable() {
    let (first, second) = (identity(), identity());
    assert_ne!(first.generation, second.generation);
    assert_ne!(first.machine_id, second.machine_id);
    for random in [
        0,
        1,
        2,
        3,
        u32::MAX - 4,
        u32::MAX - 3,
        u32::MAX - 1,
        u32::MAX,
    ] {
        assert!((3..u32::MAX).contains(&usable_cid(random)), "{random}");
    }
}
