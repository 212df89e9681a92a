//! Reads a Debian package: an ar archive with a compressed tar archive of the files in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Take};
use std::ops::Range;
use std::path::Path;

use crate::decompress::Format;
use crate::error::Error;

const AR_MAGIC: &[u8] = b"!<arch>\n";
// The header of a member (ar(5)).
const AR_HEADER_BYTES: usize = 60;
const AR_NAME: Range<usize> = 0..16;
const AR_LENGTH: Range<usize> = 48..58;
const AR_HEADER_END: &[u8] = b"`\n";
const BUFFER_BYTES: usize = 256 * 1024;

/// Whether `bytes` start like an ar archive.
pub fn is_package(bytes: &[u8]) -> bool {
    bytes.starts_with(AR_MAGIC)
}

/// Shows every regular file of the package to `visit`, with its path without `./` or `/` at the
/// start. The content is there to be read; what is not read is skipped.
pub fn for_each_file(
    package: &Path,
    visit: &mut dyn FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> Result<(), Error> {
    let problem = |problem: String| Error::Package {
        path: package.to_owned(),
        problem,
    };
    let file = File::open(package).map_err(Error::file("open", package))?;
    let member = find_data(file).map_err(|error| problem(format!("is damaged: {error}")))?;
    let (name, content) = member
        .ok_or_else(|| problem("has no data.tar member, expected a Debian package".to_owned()))?;
    let input = BufReader::with_capacity(BUFFER_BYTES, content);
    visit_tar(input, visit).map_err(|error| problem(format!("cannot read its {name}: {error}")))
}

/// The member of the ar archive that holds the files: its name and its content.
///
/// The format is read here because ar crates make room for a long name before they look whether it
/// is there, and its length may be 10 GB. Packages have short names only (deb(5)).
fn find_data(mut file: File) -> io::Result<Option<(String, Take<File>)>> {
    let mut magic = [0; AR_MAGIC.len()];
    file.read_exact(&mut magic)?;
    loop {
        let mut header = [0; AR_HEADER_BYTES];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        let (name, length) = read_header(&header)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "bad header of a member"))?;
        if name.starts_with("data.tar") {
            let found = file
                .metadata()?
                .len()
                .saturating_sub(file.stream_position()?);
            if found < u64::from(length) {
                let text = format!("{name} has {found} of {length} bytes");
                return Err(io::Error::new(ErrorKind::UnexpectedEof, text));
            }
            return Ok(Some((name, file.take(length.into()))));
        }
        let padded = i64::from(length) + i64::from(length % 2);
        file.seek(SeekFrom::Current(padded))?;
    }
}

/// Name and length in bytes of an ar archive's member. None of a package has 4 GiB.
fn read_header(header: &[u8; AR_HEADER_BYTES]) -> Option<(String, u32)> {
    if !header.ends_with(AR_HEADER_END) {
        return None;
    }
    let text = |range| std::str::from_utf8(header.get(range)?).ok();
    let name = text(AR_NAME)?.trim_end().trim_end_matches('/');
    let length = text(AR_LENGTH)?.trim_end().parse().ok()?;
    Some((name.to_owned(), length))
}

fn visit_tar(
    mut input: impl BufRead,
    visit: &mut dyn FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let reader: Box<dyn Read> = match Format::detect(input.fill_buf()?) {
        Some(format) => format.reader(input)?,
        None => Box::new(input),
    };
    // Skipping and header reading are many small reads.
    let mut archive = tar::Archive::new(BufReader::with_capacity(BUFFER_BYTES, reader));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let path = entry.path()?.to_string_lossy().into_owned();
            visit(
                path.trim_start_matches("./").trim_start_matches('/'),
                &mut entry,
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn member(name: &str, length: &str) -> Vec<u8> {
        let fields = format!(
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{length:<10}`\n",
            0, 0, 0, 644
        );
        fields.into_bytes()
    }

    fn refusal(members: &[Vec<u8>]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(AR_MAGIC).unwrap();
        file.write_all(&members.concat()).unwrap();
        let result = for_each_file(file.path(), &mut |_, _| Ok(()));
        result.unwrap_err().to_string()
    }

    #[test]
    fn archives_without_data_are_refused_whatever_they_claim() {
        for (name, length) in [
            ("//", "4294967295"),
            ("#1/9999999", "7"),
            ("x", "4294967295"),
        ] {
            let error = refusal(&[member(name, length)]);
            assert!(error.contains("has no data.tar member"), "{error}");
        }
        for length in ["", "-1", "9999999999", "1x"] {
            let error = refusal(&[member("x", length)]);
            assert!(error.contains("bad header of a member"), "{error}");
        }
        let error = refusal(&[member("x", "0")[..59].to_vec(), b"  ".to_vec()]);
        assert!(error.contains("bad header of a member"), "{error}");
        let error = refusal(&[member("data.tar.zst", "4000000000"), b"abc".to_vec()]);
        assert!(
            error.contains("data.tar.zst has 3 of 4000000000 bytes"),
            "{error}"
        );
    }
}
