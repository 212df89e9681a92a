//! The agent's program as a command of its own: packs and unpacks files for the host.
//!
//! As a command it has a user, streams, signals and an end like any other, and what it needs of memory
//! is gone with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use archive::{Layout, Rules, pack, unpack};

/// The name that the program has as a command.
pub const AGENT: &str = "minivmm-agent";
/// What is printed of a file.
const SHOWN_BYTES: u64 = 1 << 20;
/// What comes before the words of a tool.
pub const TOOL: &str = "tool";

/// Runs the tool that `words` ask for.
pub fn run(words: Vec<OsString>) -> ExitCode {
    let ended = match parse(words) {
        Some(tool) => tool.run(),
        None => Err("The agent has no such tool".to_owned()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print("error", &error);
            ExitCode::FAILURE
        }
    }
}

/// What is on the lines of standard error.
fn print(kind: &str, text: &str) {
    let text = text.replace('\n', " ");
    eprintln!("{kind}: {text}");
}

#[derive(Debug, Eq, PartialEq)]
enum Tool {
    Pack {
        follow: bool,
        path: PathBuf,
    },
    Unpack {
        layout: Layout,
        rules: Rules,
        path: PathBuf,
    },
    Show {
        path: PathBuf,
    },
}

fn parse(words: Vec<OsString>) -> Option<Tool> {
    let mut words = words.into_iter();
    let name = words.next()?;
    let path = PathBuf::from(words.next_back()?);
    let options: Vec<OsString> = words.collect();
    let has = |option: &str| options.iter().any(|word| word == option);
    let known: &[&str] = match name.to_str()? {
        "pack" => &["--follow"],
        "unpack" => &["--names", "--owners"],
        "show" => &[],
        _ => return None,
    };
    if !options
        .iter()
        .all(|word| known.iter().any(|known| word == known))
    {
        return None;
    }
    Some(match name.to_str()? {
        "pack" => Tool::Pack {
            follow: has("--follow"),
            path,
        },
        "show" => Tool::Show { path },
        _ => Tool::Unpack {
            layout: if has("--names") {
                Layout::Names
            } else {
                Layout::Root
            },
            // The host has sent it: it may make programs that run as their owner.
            rules: Rules {
                owners: has("--owners"),
                special_bits: true,
            },
            path,
        },
    })
}

impl Tool {
    fn run(&self) -> Result<(), String> {
        let mut notice = |note: String| print("note", &note);
        let done = match self {
            Self::Pack { follow, path } => pack(path, *follow, io::stdout().lock(), &mut notice),
            Self::Unpack {
                layout,
                rules,
                path,
            } => unpack(io::stdin().lock(), path, *layout, *rules, &mut notice),
            Self::Show { path } => {
                return show(path)
                    .map_err(|error| format!("Cannot show {}: {error}", path.display()));
            }
        };
        done.map_err(|error| error.to_string())
    }
}

/// Prints the end of a file.
fn show(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(SHOWN_BYTES)))?;
    io::copy(&mut file.take(SHOWN_BYTES), &mut io::stdout().lock()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Option<Tool> {
        parse(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn tools_have_their_own_options_and_a_path() {
        let pack = Tool::Pack {
            follow: true,
            path: "/a".into(),
        };
        assert_eq!(parsed(&["pack", "--follow", "/a"]), Some(pack));
        let unpack = Tool::Unpack {
            layout: Layout::Names,
            rules: Rules {
                owners: true,
                special_bits: true,
            },
            path: "--names".into(),
        };
        assert_eq!(
            parsed(&["unpack", "--names", "--owners", "--names"]),
            Some(unpack)
        );
        let wrong: [&[&str]; 5] = [
            &[],
            &["pack"],
            &["pack", "--names", "/a"],
            &["rm", "/a"],
            &["unpack", "/a", "/b"],
        ];
        for words in wrong {
            assert_eq!(parsed(words), None, "{words:?}");
        }
    }
}
