//! One connection, in both directions until each has ended.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::PollFd;

use crate::copy::{Progress, StreamCopy};
use crate::poll;

/// Moves bytes between `client` and `guest`. One that sends no more still receives.
///
/// # Errors
/// Either side has failed.
pub fn run(client: &TcpStream, guest: &UnixStream) -> io::Result<()> {
    client.set_nonblocking(true)?;
    guest.set_nonblocking(true)?;
    let mut to_guest = Some(StreamCopy::new(client, guest)?);
    let mut to_client = Some(StreamCopy::new(guest, client)?);
    while to_guest.is_some() || to_client.is_some() {
        let [guest_ready, client_ready] = wait(&to_guest, &to_client)?;
        if guest_ready && step(&mut to_guest, || guest.shutdown(Shutdown::Write))? == Broken::Yes {
            return Ok(());
        }
        if client_ready && step(&mut to_client, || client.shutdown(Shutdown::Write))? == Broken::Yes
        {
            return Ok(());
        }
    }
    Ok(())
}

#[derive(Debug, Eq, PartialEq)]
enum Broken {
    Yes,
    No,
}

/// Waits until a copy can go on; which of the two can.
fn wait(to_guest: &Option<StreamCopy>, to_client: &Option<StreamCopy>) -> io::Result<[bool; 2]> {
    let wanted = [to_guest, to_client].map(|copy| copy.as_ref().and_then(StreamCopy::poll_for));
    let mut fds: Vec<_> = wanted
        .iter()
        .flatten()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags))
        .collect();
    poll::wait(&mut fds, None)?;
    let mut polled = fds.iter();
    Ok(wanted
        .map(|wanted| wanted.is_some() && polled.next().is_some_and(|fd| !fd.revents().is_empty())))
}

/// Moves what is there. At the end the other side is told, which may have gone by itself.
fn step(copy: &mut Option<StreamCopy>, end: impl FnOnce() -> io::Result<()>) -> io::Result<Broken> {
    let progress = match copy.as_mut().map(StreamCopy::step) {
        Some(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Progress::Broken,
        Some(progress) => progress?,
        None => return Ok(Broken::No),
    };
    match progress {
        Progress::Open => Ok(Broken::No),
        Progress::Broken => Ok(Broken::Yes),
        Progress::Ended | Progress::Escaped => {
            *copy = None;
            match end() {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
                _ => Ok(Broken::No),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// Both far ends of a relay that runs.
    fn rig() -> (
        TcpStream,
        UnixStream,
        std::thread::JoinHandle<io::Result<()>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let (guest, ours) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(move || run(&accepted, &ours));
        (client, guest, relay)
    }

    #[test]
    fn each_direction_ends_on_its_own() {
        let (mut client, mut guest, relay) = rig();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        guest.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        let answer = vec![b'a'; 1_000_000];
        guest.write_all(&answer).unwrap();
        drop(guest);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), answer.len());
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn side_that_goes_away_ends_it() {
        let (client, mut guest, relay) = rig();
        drop(client);
        // The first write may still find room.
        while guest.write_all(&[0; 65_536]).is_ok() {}
        relay.join().unwrap().unwrap();
    }
}
