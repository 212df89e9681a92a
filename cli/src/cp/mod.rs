//! Copies files between this host and a guest: one side packs, the other unpacks, and the tar stream
//! between them is that of a command in the guest.

mod meter;
mod tool;

use std::io::{self, IsTerminal, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use archive::{Error, Layout, Rules, pack, unpack};

use crate::id::VmId;
use crate::output;
use meter::Meter;
use tool::Tool;

/// Moved at a time between two streams.
const BLOCK_BYTES: usize = 256 * 1024;

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Owners and groups are kept.
    pub owners: bool,
    /// A source that is a link is followed.
    pub follow: bool,
    /// Nothing is told but errors.
    pub quiet: bool,
}

/// A path in a guest.
#[derive(Debug)]
pub struct Guest {
    vsock: PathBuf,
    id: VmId,
    path: String,
}

/// What is copied into a guest.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A file or a directory.
    Files(&'a Path),
    /// The tar stream on our standard input.
    Stream,
}

/// Where a copy from a guest goes.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A file or a directory.
    Files(&'a Path),
    /// Our standard output, as a tar stream.
    Stream,
}

impl Guest {
    /// `path` in the VM `id`, whose vsock socket this is.
    pub fn new(vsock: PathBuf, id: VmId, path: String) -> Self {
        Self { vsock, id, path }
    }
}

/// Copies into a guest.
///
/// # Errors
/// Either side failed.
pub fn into_guest(source: Source<'_>, guest: &Guest, options: Options) -> anyhow::Result<()> {
    let mut words = vec!["unpack"];
    if matches!(source, Source::Stream) {
        words.push("--names");
    }
    if options.owners {
        words.push("--owners");
    }
    words.push(&guest.path);
    if let Source::Files(path) = source {
        // Said before anything happens in the guest.
        path.symlink_metadata()
            .with_context(|| format!("Cannot read {}", path.display()))?;
    }
    let tool = Tool::start(&guest.vsock, &words, true)?;
    let Some(stdin) = tool.stdin() else {
        bail!("The agent took no input");
    };
    let mut notice = |note: String| note_of_ours(&note, options);
    let sent = {
        let mut stream = Meter::new(stdin, options.quiet);
        match source {
            Source::Files(path) => pack(path, options.follow, &mut stream, &mut notice),
            Source::Stream => move_all(io::stdin().lock(), &mut stream),
        }
    };
    // Without the end of the stream what has been sent is not taken for all of it.
    if is_whole(&sent)
        && let Err(error) = stdin.shutdown(Shutdown::Write)
    {
        tracing::debug!(%error, "The guest has closed the stream already");
    }
    finish(tool, sent, guest, options)
}

/// Copies out of a guest.
///
/// # Errors
/// Either side failed.
pub fn out_of_guest(
    guest: &Guest,
    destination: Destination<'_>,
    options: Options,
) -> anyhow::Result<()> {
    if matches!(destination, Destination::Stream) && io::stdout().is_terminal() {
        bail!("Standard output is a terminal, expected a file or a pipe for the tar stream");
    }
    let mut words = vec!["pack"];
    if options.follow {
        words.push("--follow");
    }
    words.push(&guest.path);
    let tool = Tool::start(&guest.vsock, &words, false)?;
    let mut notice = |note: String| note_of_ours(&note, options);
    let received = {
        let stream = Meter::new(tool.stdout(), options.quiet);
        match destination {
            Destination::Files(path) => {
                let rules = Rules {
                    owners: options.owners,
                    special_bits: false,
                };
                unpack(stream, path, Layout::Root, rules, &mut notice)
            }
            Destination::Stream => move_all(stream, io::stdout().lock()),
        }
    };
    finish(tool, received, guest, options)
}

/// The guest's failure is told when it is why ours came.
fn finish(
    tool: Tool,
    ours: Result<(), Error>,
    guest: &Guest,
    options: Options,
) -> anyhow::Result<()> {
    let Guest { id, path, .. } = guest;
    let is_ours = !matches!(
        ours,
        Ok(()) | Err(Error::Read(_) | Error::Write(_) | Error::Changed { .. })
    );
    if is_ours {
        // The tool ends with its streams.
        return Ok(ours?);
    }
    let ended = tool
        .end(is_whole(&ours))
        .with_context(|| format!("Copy of {id}:{path} was cut off"))?;
    for note in &ended.notes {
        note_of_ours(&format!("{id}: {note}"), options);
    }
    match ended.error {
        Some(error) => bail!("{id}: {error}"),
        None => Ok(ours?),
    }
}

/// Whether the stream has come to its end.
fn is_whole(ours: &Result<(), Error>) -> bool {
    matches!(ours, Ok(()) | Err(Error::Changed { .. }))
}

fn note_of_ours(note: &str, options: Options) {
    if !options.quiet {
        output::complain(format!("minivmm: {note}"));
    }
}

fn move_all(mut from: impl io::Read, mut to: impl Write) -> Result<(), Error> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let count = match from.read(&mut block) {
            Ok(0) => return to.flush().map_err(Error::Write),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Read(error)),
        };
        let bytes = block.get(..count).unwrap_or_default();
        to.write_all(bytes).map_err(Error::Write)?;
    }
}
