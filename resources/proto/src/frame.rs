//! ttrpc's wire format: a ten-byte header, then the payload.
//!
//! The ttrpc crate's own transport is not used. Its client polls every 10 ms and keeps a dropped
//! connection open until then; its server starts five threads for every connection, whose stacks
//! and allocator arenas would be private memory in each clone and time in each restore.

use std::io::{self, ErrorKind, Read, Write};

use ttrpc::proto::{MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MessageHeader};

/// One message as it travels.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Which call it belongs to. The client picks odd numbers.
    pub stream_id: u32,
    /// One of ttrpc's `MESSAGE_TYPE_*`.
    pub kind: u8,
    /// An encoded `Request` or `Response`.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Reads one frame; `None` when the peer has closed between two frames.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` when the peer closed inside a frame, `InvalidData` when the frame claims to
    /// be longer than ttrpc allows, and whatever `reader` reports.
    pub fn read(reader: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        let first = read_some(reader, &mut header)?;
        if first == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut header[first..])?;
        let header = MessageHeader::from(header);

        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > MESSAGE_LENGTH_MAX {
            let text = format!("frame of {length} bytes, at most {MESSAGE_LENGTH_MAX} expected");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload)?;
        Ok(Some(Self {
            stream_id: header.stream_id,
            kind: header.type_,
            payload,
        }))
    }

    /// Writes the frame in one piece, so that it is one vsock packet when it is small.
    ///
    /// # Errors
    ///
    /// `InvalidInput` when the payload is longer than ttrpc allows, and whatever `writer` reports.
    pub fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        let length = u32::try_from(self.payload.len())
            .ok()
            .filter(|_| self.payload.len() <= MESSAGE_LENGTH_MAX)
            .ok_or_else(|| {
                let (got, max) = (self.payload.len(), MESSAGE_LENGTH_MAX);
                let text = format!("message of {got} bytes, at most {max} expected");
                io::Error::new(ErrorKind::InvalidInput, text)
            })?;
        let header = MessageHeader {
            length,
            stream_id: self.stream_id,
            type_: self.kind,
            flags: 0,
        };
        let mut bytes = Vec::<u8>::from(header);
        bytes.extend_from_slice(&self.payload);
        writer.write_all(&bytes)
    }
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded() -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame {
            stream_id: 5,
            kind: 1,
            payload: b"abc".to_vec(),
        }
        .write(&mut bytes)
        .unwrap();
        bytes
    }

    #[test]
    fn frame_has_the_documented_layout() {
        assert_eq!(encoded(), b"\0\0\0\x03\0\0\0\x05\x01\0abc");
    }

    #[test]
    fn frames_follow_each_other_until_the_end() {
        let bytes = [encoded(), encoded()].concat();
        let mut reader = bytes.as_slice();
        for _ in 0..2 {
            let frame = Frame::read(&mut reader).unwrap().unwrap();
            assert_eq!(
                (frame.stream_id, frame.payload.as_slice()),
                (5, &b"abc"[..])
            );
        }
        assert_eq!(Frame::read(&mut reader).unwrap(), None);
    }

    #[test]
    fn cut_frame_is_an_error_wherever_it_is_cut() {
        let bytes = encoded();
        for length in 1..bytes.len() {
            let error = Frame::read(&mut &bytes[..length]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "cut at {length}");
        }
    }

    #[test]
    fn oversized_frame_is_refused_in_both_directions() {
        let header = MessageHeader::new_request(1, 4 * 1024 * 1024 + 1);
        let error = Frame::read(&mut Vec::<u8>::from(header).as_slice()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);

        let big = Frame {
            stream_id: 1,
            kind: 1,
            payload: vec![0; MESSAGE_LENGTH_MAX + 1],
        };
        let error = big.write(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}
