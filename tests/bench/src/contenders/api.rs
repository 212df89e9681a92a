//! Requests over the Unix socket of a VMM: HTTP with a body of JSON, one connection each.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use serde_json::Value;

/// Sends a request and waits for its answer; an empty body is left out.
///
/// # Errors
/// The answer is not one of success; what it says is passed on.
pub fn request(
    mut stream: UnixStream,
    method: &str,
    path: &str,
    body: &Value,
) -> anyhow::Result<()> {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head, body].concat().into_bytes())?;
    let mut answer = BufReader::new(stream);
    let status = line(&mut answer)?;
    let mut length = 0;
    loop {
        let header = line(&mut answer)?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    let mut text = String::new();
    answer.take(length).read_to_string(&mut text)?;
    let code = status.split(' ').nth(1).context("No status")?;
    if !code.starts_with('2') {
        bail!("{method} {path}: {status}: {text}");
    }
    Ok(())
}

fn line(answer: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    answer.read_line(&mut line)?;
    let line = line.strip_suffix("\r\n").context("No answer")?;
    Ok(line.to_owned())
}
