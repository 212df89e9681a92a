//! What a command asks of a pool, and what members tell their pool: JSON, one object a line.
//!
//! The command connects to the pool's socket and writes its request; from then on the connection is the link
//! to the VM process ([`crate::vm_process::link`]).

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use snapshot::TemplateName;

use crate::json_lines;
use crate::poll;
use crate::vm_process::plan::RestorePlan;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// How long a caller may take to say what it wants. Meanwhile a member is not there for others.
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// A clone is wanted.
#[derive(Debug, Deserialize, Serialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What it is to be.
    pub plan: RestorePlan,
    /// Remove its directory when it ends.
    #[serde(default)]
    pub remove: bool,
    /// Uses of `-v`.
    #[serde(default)]
    pub verbosity: u8,
    /// When the command began, on the monotonic clock; without, now.
    #[serde(default)]
    pub began_at: Option<Duration>,
}

/// What a pool has clones of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stock {
    /// The directory of the store.
    pub store: PathBuf,
    /// The template.
    pub template: TemplateName,
}

/// What a member tells its pool. The end of the connection says that the member does not need anybody any
/// more, or is dead.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// It begins.
    Begun {
        /// Its process.
        pid: u32,
    },
    /// A clone waits.
    Ready {
        /// Memory that it shares with nobody.
        private_bytes: u64,
    },
    /// It is somebody's.
    Taken,
    /// It cannot be made.
    Failed {
        /// Why.
        message: String,
    },
}

impl Request {
    /// Reads a caller's request, and checks that it is for this pool; `None` when the caller is gone.
    ///
    /// # Errors
    /// It is no request, or not for this pool.
    pub fn read(caller: &UnixStream, stock: &Stock) -> anyhow::Result<Option<Self>> {
        caller.set_nonblocking(true)?;
        let deadline = Instant::now() + REQUEST_TIME;
        let request: Self = match json_lines::first(caller, Some(deadline)) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                bail!("No request came within {} s", REQUEST_TIME.as_secs())
            }
            Err(error) => return Err(error).context("That is no request for a clone"),
        };
        if poll::has_hung_up(caller) {
            return Ok(None);
        }
        request.check(stock)?;
        Ok(Some(request))
    }

    fn check(&self, stock: &Stock) -> anyhow::Result<()> {
        if self.version != VERSION {
            bail!(
                "The pool of template {} is of another version of minivmm ({VERSION}, the request has {}); \
                 start it again",
                stock.template,
                self.version
            );
        }
        let (store, template) = (&self.plan.store, &self.plan.template);
        if *store != stock.store || *template != stock.template {
            bail!(
                "The pool has clones of template {} in {}, not of {template} in {}",
                stock.template,
                stock.store.display(),
                store.display()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json_lines::send;
    use crate::vm_process::sizing::Target;
    use std::io::Write;
    use vmm::MemorySize;

    fn stock() -> Stock {
        Stock {
            store: "/store".into(),
            template: "base".parse().unwrap(),
        }
    }

    fn request() -> Request {
        Request {
            version: VERSION,
            plan: RestorePlan {
                id: "vm-1".parse().unwrap(),
                template: "base".parse().unwrap(),
                store: "/store".into(),
                net: None,
                size: Target {
                    cpus: Some(4),
                    memory: Some(MemorySize::from_mib(512).unwrap()),
                },
                disks: vec!["/d.img,readonly".parse().unwrap()],
                with_agent: true,
                timeout: Duration::from_secs(60),
                keep: false,
                verify: false,
            },
            remove: true,
            verbosity: 2,
            began_at: Some(Duration::from_nanos(5)),
        }
    }

    fn read(request: &Request) -> anyhow::Result<Option<Request>> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, request).unwrap();
        Request::read(&theirs, &stock())
    }

    #[test]
    fn a_request_arrives_as_it_was() {
        let read = read(&request()).unwrap().unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", request()));
    }

    #[test]
    fn a_program_has_to_say_what_it_wants_and_no_more() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours)
            .write_all(
                b"{\"version\":1,\"plan\":{\"id\":\"a\",\"template\":\"base\",\"store\":\"/store\"}}\n",
            )
            .unwrap();
        let plan = Request::read(&theirs, &stock()).unwrap().unwrap().plan;
        assert!(plan.with_agent && plan.size.is_empty() && plan.net.is_none());
        assert_eq!(plan.timeout, Duration::from_secs(60));
    }

    #[test]
    fn what_is_not_for_this_pool_is_refused() {
        let mut other = request();
        other.plan.store = "/elsewhere".into();
        let text = read(&other).unwrap_err().to_string();
        assert!(text.contains("not of base in /elsewhere"), "{text}");
        let mut later = request();
        later.version = 2;
        let text = read(&later).unwrap_err().to_string();
        assert!(text.contains("another version"), "{text}");
    }

    #[test]
    fn a_caller_that_is_gone_or_says_something_else_costs_nothing() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        assert!(Request::read(&theirs, &stock()).unwrap().is_none());
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &request()).unwrap();
        drop(ours);
        assert!(Request::read(&theirs, &stock()).unwrap().is_none());
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"GET / HTTP/1.1\n").unwrap();
        let error = Request::read(&theirs, &stock()).unwrap_err();
        assert!(error.to_string().contains("no request for a clone"));
    }
}
