//! The compressed formats of kernels, modules and packages.

use std::io::{self, BufRead, ErrorKind, Read};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// The largest kernel or module that is taken for one: a file that claims more is damaged.
const MAX_BYTES: u64 = 1 << 30;
/// The most memory that an xz file may ask for; kernels are compressed with dictionaries of up to
/// 128 MiB.
const MAX_XZ_KIB: u32 = 512 << 10;
/// lz4's legacy frame has blocks of this size, the last one excepted.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 << 20;

/// How something is compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// The .xz container, with the filters that kernels use.
    Xz,
    /// Zstandard.
    Zstd,
    /// lz4's frame format from before 2013, which is the one that kernels use.
    Lz4Legacy,
    /// Known by name, and not supported.
    Unsupported(&'static str),
}

impl Format {
    /// Recognises the format by its first bytes.
    pub fn detect(bytes: &[u8]) -> Option<Self> {
        const MAGICS: [(&[u8], Format); 9] = [
            (&[0x1f, 0x8b], Format::Gzip),
            (&[0x1f, 0x9e], Format::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
            (&[0x02, 0x21, 0x4c, 0x18], Format::Lz4Legacy),
            (
                &[0x04, 0x22, 0x4d, 0x18],
                Format::Unsupported("lz4 in its newer frame format"),
            ),
            (b"BZh", Format::Unsupported("bzip2")),
            (&[0x5d, 0, 0], Format::Unsupported("lzma")),
            (&[0x89, b'L', b'Z', b'O'], Format::Unsupported("lzo")),
        ];
        MAGICS
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|(_, format)| *format)
    }

    /// A reader of the decompressed bytes.
    pub fn reader<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(GzDecoder::new(input)),
            Self::Xz => Box::new(XzReader::new_mem_limit(input, false, MAX_XZ_KIB)),
            Self::Zstd => {
                let decoder = StreamingDecoder::new(input);
                Box::new(decoder.map_err(|error| invalid(error.to_string()))?)
            }
            Self::Lz4Legacy => Box::new(io::Cursor::new(lz4_legacy(input)?)),
            Self::Unsupported(name) => {
                return Err(io::Error::new(
                    ErrorKind::Unsupported,
                    format!("{name} compression"),
                ));
            }
        })
    }

    /// Decompresses all of `input`.
    pub fn decompress(self, input: &[u8]) -> io::Result<Vec<u8>> {
        read_all(&mut self.reader(input)?)
    }
}

/// Reads to the end, which must come: a small compressed file can have a very large content.
pub fn read_all(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(invalid(format!("holds more than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

/// A magic number, then blocks with their compressed length before them, to the end of the input.
fn lz4_legacy(mut input: impl Read) -> io::Result<Vec<u8>> {
    let mut magic = [0; 4];
    input.read_exact(&mut magic)?;
    let mut output = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    loop {
        let mut length = [0; 4];
        match input.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(output),
            result => result?,
        }
        let length = u64::from(u32::from_le_bytes(length));
        let mut compressed = Vec::new();
        input.by_ref().take(length).read_to_end(&mut compressed)?;
        if u64::try_from(compressed.len()) != Ok(length) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let count = lz4_flex::block::decompress_into(&compressed, &mut block)
            .map_err(|error| invalid(format!("lz4: {error}")))?;
        output.extend_from_slice(block.get(..count).unwrap_or_default());
        // The caller tells that it is too much.
        if u64::try_from(output.len()).is_ok_and(|length| length > MAX_BYTES) {
            return Ok(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn gzip_round_trips() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"hello").unwrap();
        let bytes = encoder.finish().unwrap();
        assert_eq!(Format::detect(&bytes), Some(Format::Gzip));
        assert_eq!(Format::Gzip.decompress(&bytes).unwrap(), b"hello");
        assert!(Format::Gzip.decompress(&bytes[..bytes.len() - 9]).is_err());
    }

    #[test]
    fn lz4_blocks_follow_each_other() {
        // Two blocks of literals: a token with the length, then the bytes.
        let bytes = [
            &[0x02, 0x21, 0x4c, 0x18][..],
            &[4, 0, 0, 0, 0x30, b'a', b'b', b'c'],
            &[3, 0, 0, 0, 0x20, b'd', b'e'],
        ]
        .concat();
        assert_eq!(Format::detect(&bytes), Some(Format::Lz4Legacy));
        assert_eq!(Format::Lz4Legacy.decompress(&bytes).unwrap(), b"abcde");
        let error = Format::Lz4Legacy
            .decompress(&bytes[..bytes.len() - 1])
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn formats_that_are_not_supported_are_named() {
        for (bytes, name) in [(&b"BZh9"[..], "bzip2"), (&[0x5d, 0, 0, 0x80], "lzma")] {
            let error = Format::detect(bytes)
                .unwrap()
                .decompress(bytes)
                .unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(Format::detect(b"\x7fELF"), None);
        assert_eq!(Format::detect(b""), None);
    }
}
