//! How a job says that it is ready, and what another process in the guest finds of it later.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::Error;

/// Between two looks for a file. The host's deadline ends the waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Tells whoever started this process that it does what it is to do.
pub fn report_ready() -> Result<(), Error> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    Ok(())
}

/// A socket for other processes of the guest.
pub fn listen(name: &str) -> Result<UnixListener, Error> {
    Ok(UnixListener::bind_addr(&SocketAddr::from_abstract_name(
        name,
    )?)?)
}

/// A connection to it.
pub fn connect(name: &str) -> Result<UnixStream, Error> {
    Ok(UnixStream::connect_addr(&SocketAddr::from_abstract_name(
        name,
    )?)?)
}

/// Job: answers each line that another process of the guest [`ask`]s by that name.
pub fn serve(
    name: &str,
    mut answer: impl FnMut(&str) -> Result<String, Error>,
) -> Result<(), Error> {
    let listener = listen(name)?;
    report_ready()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        stream.write_all(answer(line.trim_end())?.as_bytes())?;
    }
    Ok(())
}

/// What the job of that name says to a line; nothing when it has ended.
pub fn ask(name: &str, line: &str) -> Result<String, Error> {
    let mut stream = connect(name)?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Writes a file as a whole, for [`await_file`].
pub fn publish(file: &str, text: &str) -> Result<(), Error> {
    let temporary = format!("{file}.new");
    if let Some(directory) = Path::new(file).parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&temporary, text)?;
    fs::rename(temporary, file)?;
    Ok(())
}

/// Job: writes a line into the kernel's log, where the tests can tell what came later.
pub fn note_log(line: &str) -> Result<(), Error> {
    fs::write("/dev/kmsg", format!("{line}\n"))?;
    report_ready()
}

/// Waits until a file is there and prints it.
pub fn await_file(file: &str) -> Result<(), Error> {
    loop {
        match fs::read_to_string(file) {
            Ok(text) => {
                println!("{text}");
                return Ok(());
            }
            Err(error) if error.kind() == ErrorKind::NotFound => std::thread::sleep(LOOK_AGAIN),
            Err(error) => return Err(error.into()),
        }
    }
}
