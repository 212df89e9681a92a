//! Environment variables for a command in a guest, from the command line and from files.

use std::path::Path;

/// `NAME=VALUE`; `None` when only a name was given that we have no variable of.
pub type Variable = Option<String>;
/// Those of a file.
pub type Variables = Vec<Variable>;

/// The largest file that is read, in bytes. The guest's kernel takes far less.
const MOST_BYTES: u64 = 1 << 20;

/// Parses `NAME=VALUE`, or `NAME` for our own variable of that name.
///
/// # Errors
/// There is no name, our own value is not UTF-8, or a NUL is in it.
pub fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    if name.is_empty() {
        return Err("expected NAME=VALUE or NAME".to_owned());
    }
    if text.contains('\0') {
        return Err("it contains a NUL character".to_owned());
    }
    if value.is_some() {
        return Ok(Some(text.to_owned()));
    }
    match std::env::var(name) {
        Ok(value) => Ok(Some(format!("{name}={value}"))),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err("our own value is not UTF-8".to_owned()),
    }
}

/// Reads variables from a file: one a line, without quotes; empty lines and those that begin with
/// `#` are passed over.
///
/// # Errors
/// It cannot be read, or a line is no variable.
pub fn file(path: &str) -> Result<Variables, String> {
    let size = Path::new(path)
        .metadata()
        .map_err(|error| error.to_string())?
        .len();
    if size > MOST_BYTES {
        return Err(format!("{size} bytes, expected at most {MOST_BYTES}"));
    }
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Variables, String> {
    let lines = text.lines().enumerate();
    let lines = lines.map(|(number, line)| (number, line.trim_start()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            let name = line.split('=').next().unwrap_or_default();
            if name.contains(char::is_whitespace) {
                return Err(format!("line {}: white space in {name:?}", number + 1));
            }
            variable(line).map_err(|error| format!("line {}: {error}", number + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_taken_as_it_is() {
        assert_eq!(variable("A=b=c d "), Ok(Some("A=b=c d ".to_owned())));
        assert_eq!(variable("A="), Ok(Some("A=".to_owned())));
        assert!(variable("=x").is_err());
        assert!(variable("").is_err());
    }

    #[test]
    fn name_alone_passes_our_own_value_on() {
        let path = std::env::var("PATH").unwrap();
        assert_eq!(variable("PATH"), Ok(Some(format!("PATH={path}"))));
        assert_eq!(variable("NO_SUCH_VARIABLE_HERE"), Ok(None));
    }

    #[test]
    fn file_has_one_variable_a_line() {
        let text = "# comment\n\nA=1\r\n  B=x # y\nNO_SUCH_VARIABLE_HERE\n";
        let expected = [Some("A=1"), Some("B=x # y"), None];
        let expected = expected.map(|line| line.map(str::to_owned));
        assert_eq!(parse(text).unwrap(), expected);
        assert!(parse("A=1\n=2\n").unwrap_err().starts_with("line 2"));
        assert!(parse("export A=1\n").unwrap_err().contains("white space"));
        assert!(
            file("/nonexistent/env")
                .unwrap_err()
                .contains("No such file")
        );
    }
}
