//! A connection to the guest over vsock: round trips, and bytes both ways.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use anyhow::ensure;
use minivmm_tests::{Guest, Host, hybrid};

use crate::report::Report;
use crate::samples::{Samples, Unit};

const PING_BYTES: usize = 64;
/// Of a stream, and how many of it a call moves.
const STREAM_BYTES: usize = 64 << 20;
const CALL_BYTES: usize = 64 << 10;
const STREAMS: u32 = 3;

const ECHO_PORT: u32 = 5000;
const DISCARD_PORT: u32 = 5001;
const SOURCE_PORT: u32 = 5002;

/// Measures one clone, whose template's guest serves the ports.
pub fn measure(host: &Host, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let guest = Guest::debian_6_1().jobs(&[
        &format!("vsock-listen {ECHO_PORT} echo"),
        &format!("vsock-listen {DISCARD_PORT} discard"),
        &format!("vsock-listen {SOURCE_PORT} source:{STREAM_BYTES}"),
    ]);
    let vm = host.restore(&host.template(&guest));
    let mut pings = Samples::new(Unit::Microseconds);
    let mut stream = hybrid::connect(&vm.vsock(), ECHO_PORT);
    for _ in 0..rounds * 10 {
        pings.add(ping(&mut stream)?);
    }
    drop(stream);
    report.add("vsock, round trip of 64 bytes", "minivmm", pings);

    let mut to_guest = Samples::new(Unit::MebibytesPerSecond);
    let mut to_host = Samples::new(Unit::MebibytesPerSecond);
    for _ in 0..STREAMS {
        to_guest.add(send(hybrid::connect(&vm.vsock(), DISCARD_PORT))?);
        to_host.add(receive(hybrid::connect(&vm.vsock(), SOURCE_PORT))?);
    }
    report.add("vsock, host to guest", "minivmm", to_guest);
    report.add("vsock, guest to host", "minivmm", to_host);
    vm.minivmm(["rm", "--force"]).ok();
    Ok(())
}

fn ping(stream: &mut UnixStream) -> anyhow::Result<f64> {
    let sent = [0x5a; PING_BYTES];
    let mut answer = [0; PING_BYTES];
    let begun = Instant::now();
    stream.write_all(&sent)?;
    stream.read_exact(&mut answer)?;
    let took = begun.elapsed();
    ensure!(answer == sent, "Other bytes came back");
    Ok(took.as_secs_f64() * 1e6)
}

/// The guest closes when it has all of it.
fn send(mut stream: UnixStream) -> anyhow::Result<f64> {
    let bytes = vec![0x5a; CALL_BYTES];
    let begun = Instant::now();
    for _ in 0..STREAM_BYTES / CALL_BYTES {
        stream.write_all(&bytes)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let left = stream.read_to_end(&mut Vec::new())?;
    ensure!(left == 0, "{left} bytes came back");
    Ok(rate(begun))
}

fn receive(mut stream: UnixStream) -> anyhow::Result<f64> {
    let mut bytes = vec![0; CALL_BYTES];
    let mut received = 0;
    let begun = Instant::now();
    while received < STREAM_BYTES {
        let count = stream.read(&mut bytes)?;
        ensure!(count > 0, "The stream ended after {received} bytes");
        received += count;
    }
    Ok(rate(begun))
}

fn rate(begun: Instant) -> f64 {
    f64::from(u32::try_from(STREAM_BYTES >> 20).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
}
