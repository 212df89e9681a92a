//! The first line of a host program: `CONNECT <port>\n`.

use super::poller::Token;
use rustix::net::{RecvFlags, recv};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;

/// Longest line that is taken, in bytes; `CONNECT 4294967295\r\n` has 20.
const LONGEST_LINE: usize = 32;
/// Programs that may be in their handshake at once; the oldest has to go when there are more.
const MOST_AT_ONCE: usize = 512;

/// What a program has said so far.
#[derive(Debug)]
pub(super) enum Progress {
    /// Not a whole line yet.
    Incomplete,
    /// It wants to talk to this port of the guest.
    Connect(u32),
    /// It went away, or does not speak this protocol.
    Refused,
}

/// A program that has connected but not said yet where to.
#[derive(Debug)]
pub(super) struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Handshake {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads on. Takes nothing behind the line's end: that is the guest's.
    pub(super) fn advance(&mut self) -> Progress {
        let mut bytes = [0; LONGEST_LINE];
        loop {
            let room = LONGEST_LINE - self.line.len();
            if room == 0 {
                return Progress::Refused;
            }
            let seen = match self.receive(&mut bytes[..room], RecvFlags::PEEK) {
                Ok(0) => return Progress::Refused,
                Ok(count) => &bytes[..count],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Progress::Incomplete;
                }
                Err(_) => return Progress::Refused,
            };
            let end = seen.iter().position(|byte| *byte == b'\n');
            let wanted = end.map_or(seen.len(), |end| end + 1);
            let Ok(taken) = self.receive(&mut bytes[..wanted], RecvFlags::empty()) else {
                return Progress::Refused;
            };
            self.line.extend_from_slice(&bytes[..taken]);
            if self.line.ends_with(b"\n") {
                return parse(&self.line).map_or(Progress::Refused, Progress::Connect);
            }
        }
    }

    fn receive(&self, bytes: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        let (count, _) = recv(&self.stream, bytes, flags | RecvFlags::DONTWAIT)?;
        Ok(count)
    }
}

/// All programs in their handshake, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes(BTreeMap<Token, Handshake>);

impl Handshakes {
    /// Keeps a handshake that is not complete yet; the oldest one makes room when there are too many.
    pub(super) fn insert(&mut self, token: Token, handshake: Handshake) {
        if self.0.len() >= MOST_AT_ONCE {
            self.drop_oldest();
        }
        self.0.insert(token, handshake);
    }

    /// Closes the oldest one; false when there is none.
    pub(super) fn drop_oldest(&mut self) -> bool {
        self.0.pop_first().is_some()
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Handshake> {
        self.0.get_mut(&token)
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<Handshake> {
        self.0.remove(&token)
    }
}

/// The port in `CONNECT <port>`, in any case and with any blanks between and around.
fn parse(line: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.split_ascii_whitespace();
    let (command, port) = (words.next()?, words.next()?);
    let digits_only = port.bytes().all(|byte| byte.is_ascii_digit());
    if !command.eq_ignore_ascii_case("connect") || !digits_only || words.next().is_some() {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (UnixStream, Handshake) {
        let (program, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (program, Handshake::new(ours))
    }

    #[test]
    fn accepted_lines() {
        for line in [
            "CONNECT 1024\n",
            "connect 1024\n",
            "Connect  1024 \r\n",
            "CONNECT 0001024\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Some(1024), "{line:?}");
        }
        assert_eq!(parse(b"CONNECT 4294967295\n"), Some(u32::MAX));
    }

    #[test]
    fn refused_lines() {
        let lines: [&[u8]; 11] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT abc\n",
            b"CONNECT 10 24\n",
            b"CONNECT 10\x0024\n",
            b"CONNECT1024\n",
            b"CONNECT \xff\n",
            b"GET / HTTP/1.1\r\n",
        ];
        for line in lines {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn line_may_come_byte_by_byte_and_payload_stays_in_the_socket() {
        let (mut program, mut handshake) = pair();
        for byte in b"connect 77" {
            program.write_all(&[*byte]).unwrap();
            assert!(matches!(handshake.advance(), Progress::Incomplete));
        }
        program.write_all(b"\npay\nload").unwrap();
        assert!(matches!(handshake.advance(), Progress::Connect(77)));
        let mut payload = [0; 8];
        handshake.into_stream().read_exact(&mut payload).unwrap();
        assert_eq!(&payload, b"pay\nload");
    }

    #[test]
    fn end_of_file_before_the_end_of_the_line_is_a_refusal() {
        for text in ["", "CONNECT 1024"] {
            let (mut program, mut handshake) = pair();
            program.write_all(text.as_bytes()).unwrap();
            drop(program);
            assert!(matches!(handshake.advance(), Progress::Refused));
        }
    }

    #[test]
    fn long_line_is_refused_without_reading_all_of_it() {
        let (mut program, mut handshake) = pair();
        program.write_all(&[b'x'; 4096]).unwrap();
        assert!(matches!(handshake.advance(), Progress::Refused));
        assert_eq!(handshake.line.len(), LONGEST_LINE);
    }

    #[test]
    fn oldest_of_too_many_is_closed() {
        let mut poller = super::super::poller::Poller::new().unwrap();
        let mut all = Handshakes::default();
        let (mut first, handshake) = pair();
        all.insert(poller.token(), handshake);
        let others: Vec<_> = (0..MOST_AT_ONCE)
            .map(|_| {
                let (program, handshake) = pair();
                all.insert(poller.token(), handshake);
                program
            })
            .collect();
        assert_eq!(first.read(&mut [0]).unwrap(), 0);
        let last = others.last().unwrap();
        last.set_nonblocking(true).unwrap();
        let mut last = last;
        assert_eq!(
            last.read(&mut [0]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
