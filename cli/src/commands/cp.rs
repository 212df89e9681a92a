//! `minivmm cp`: copies files between this host and a guest.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::vsock_of;
use crate::args::Context;
use crate::cp::{self, Options};
use crate::error::{Outcome, SUCCESS, usage};
use crate::id::VmId;

const EXAMPLES: &str = "\
EXAMPLES:
  A directory into a VM, and what has become of it back:
    minivmm cp site web-1:/srv
    minivmm cp web-1:/srv/site/. result
  A root file system as a tar stream:
    minivmm cp web-1:/ - | gzip >root.tar.gz

Where SRC goes is as for 'docker cp': into DST when that is a directory, and else DST is its name. Of a
directory SRC/. the contents are copied. Modes, times and symbolic links are kept, sockets and devices left
out; on this host no file gets the set-user-id bit. A file appears under its name when it is complete.";

/// Copy files between this host and a VM.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct CpArgs {
    /// Keep owners and groups; otherwise the copies are root's in the VM, and yours here
    #[arg(short, long)]
    archive: bool,
    /// Copy what SRC leads to when it is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// What to copy: a path, ID:PATH in a VM, or '-' for a tar stream on standard input
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: End,
    /// Where to: a path, ID:PATH in a VM, or '-' for a tar stream on standard output
    #[arg(value_name = "DST", allow_hyphen_values = true)]
    destination: End,
}

/// One end of a copy.
#[derive(Clone, Debug, Eq, PartialEq)]
enum End {
    Stream,
    Here(PathBuf),
    Guest(VmId, String),
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let guest = text
            .split_once(':')
            .filter(|_| !text.starts_with(['/', '.']));
        let Some((id, path)) = guest else {
            return match text {
                "" => Err("expected a path".to_owned()),
                path => Ok(Self::Here(path.into())),
            };
        };
        let id = id
            .parse()
            .map_err(|error| format!("{error}; a path of this host with ':' begins with ./"))?;
        match path {
            "" => Err("expected a path behind ID:".to_owned()),
            path => Ok(Self::Guest(
                id,
                format!("/{}", path.trim_start_matches('/')),
            )),
        }
    }
}

impl CpArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let options = Options {
            owners: self.archive,
            follow: self.follow_link,
            quiet: context.progress.is_quiet(),
        };
        match (self.source, self.destination) {
            (End::Here(source), End::Guest(id, path)) => {
                let guest = cp::Guest::new(vsock_of(context, &id)?, id, path);
                cp::into_guest(cp::Source::Files(&source), &guest, options)?;
            }
            (End::Stream, End::Guest(id, path)) => {
                let guest = cp::Guest::new(vsock_of(context, &id)?, id, path);
                cp::into_guest(cp::Source::Stream, &guest, options)?;
            }
            (End::Guest(id, path), End::Here(destination)) => {
                let guest = cp::Guest::new(vsock_of(context, &id)?, id, path);
                cp::out_of_guest(&guest, cp::Destination::Files(&destination), options)?;
            }
            (End::Guest(id, path), End::Stream) => {
                let guest = cp::Guest::new(vsock_of(context, &id)?, id, path);
                cp::out_of_guest(&guest, cp::Destination::Stream, options)?;
            }
            (End::Guest(..), End::Guest(..)) => {
                return Err(usage(
                    "Both ends are in VMs; copy to this host first, or through a pipe with '-'",
                ));
            }
            (_, End::Here(_) | End::Stream) => {
                return Err(usage("Neither end is in a VM; expected ID:PATH for one"));
            }
        }
        Ok(SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_docker_does() {
        let parse = |text: &str| text.parse::<End>();
        let guest = |path: &str| Ok(End::Guest("web-1".parse().unwrap(), path.to_owned()));
        assert_eq!(parse("-"), Ok(End::Stream));
        assert_eq!(parse("web-1:/a/."), guest("/a/."));
        assert_eq!(parse("web-1:a:b"), guest("/a:b"));
        assert_eq!(parse("web-1:/"), guest("/"));
        for path in ["a", "./web-1:a", "/web-1:a", "../a:b"] {
            assert_eq!(parse(path), Ok(End::Here(path.into())));
        }
        for wrong in ["", "web-1:", ":a", "no id:/a"] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
