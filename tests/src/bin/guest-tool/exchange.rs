//! TCP between two guests: a pattern each way at once, every byte compared, and the rate.

use std::io::Read;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use minivmm_tests::pattern::Pattern;

use crate::{Error, service};

/// Between two tries to connect to who may not listen yet. The host's deadline ends the waiting.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// The seeds of what the two sides send.
const LISTENER: u64 = 1;
const CONNECTOR: u64 = 2;

/// Takes one connection.
pub fn listen(port: u16, bytes: u64) -> Result<(), Error> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    service::report_ready()?;
    let (stream, _) = listener.accept()?;
    exchange(&stream, bytes, LISTENER, CONNECTOR)
}

/// Connects to an address with a port.
pub fn connect(address: &str, bytes: u64) -> Result<(), Error> {
    let stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(TRY_AGAIN),
        }
    };
    exchange(&stream, bytes, CONNECTOR, LISTENER)
}

fn exchange(stream: &TcpStream, bytes: u64, own: u64, other: u64) -> Result<(), Error> {
    let begun = Instant::now();
    thread::scope(|scope| -> Result<(), Error> {
        let sender = scope.spawn(move || {
            Pattern::new(own).send(stream, bytes)?;
            stream.shutdown(Shutdown::Write)
        });
        Pattern::new(other).receive(stream, bytes)?;
        sender.join().map_err(|_| "the sender has panicked")??;
        Ok(())
    })?;
    let more = Read::read(&mut { stream }, &mut [0])?;
    if more != 0 {
        return Err("there is more than was to be sent".into());
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mebibytes = f64::from(u32::try_from(bytes >> 10)?) / 1024.0;
    println!(
        "{mebibytes} MiB each way in {seconds:.2} s, {:.1} MiB/s each way",
        mebibytes / seconds
    );
    Ok(())
}
