//! `minivmm port-forward`: ports of this host that lead to programs in a guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::Args;
use proto::forward::Target;
use rustix::event::{PollFd, PollFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::vsock_of;
use crate::args::Context;
use crate::background::Background;
use crate::control::client::ask;
use crate::control::{Reply, Request};
use crate::error::{Outcome, SUCCESS};
use crate::forward::Forwarder;
use crate::id::VmId;
use crate::signals::Signals;
use crate::{output, poll};

const EXAMPLES: &str = "\
EXAMPLES:
  A web server that listens on the guest's port 80:
    minivmm port-forward web-1 8080:80
  Any free port, which is printed, to a Unix socket in the guest; and a port on another address:
    minivmm port-forward web-1 0:/run/db.sock 192.0.2.1:8080:80

Neither side needs a network: connections go through the VM's vsock device, and in the guest they come from
127.0.0.1. The command ends with Ctrl-C, or when the VM does.";

/// Let ports of this host lead to ports or Unix sockets of a VM.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PortForwardArgs {
    /// The VM
    #[arg(value_name = "ID")]
    id: VmId,
    /// A port of this host's 127.0.0.1, or another address, and the guest's port or socket
    #[arg(required = true, value_name = "[ADDR:]PORT:GUEST")]
    rules: Vec<Rule>,
}

/// A port of this host and where it leads.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Rule {
    listen: SocketAddr,
    target: Target,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || "expected [ADDR:]PORT:PORT or [ADDR:]PORT:/SOCKET".to_owned();
        let (listen, target) = match text.find(":/") {
            Some(at) => {
                let path = text.get(at + 1..).unwrap_or_default();
                let target = Target::unix(path)
                    .ok_or_else(|| format!("{path:?} cannot be the path of a Unix socket"))?;
                (text.get(..at).unwrap_or_default(), target)
            }
            None => {
                let (listen, port) = text.rsplit_once(':').ok_or_else(usage)?;
                let port = port.parse().map_err(|_| {
                    format!("{port:?} is no port of the guest, expected 1 to 65535")
                })?;
                (listen, Target::Tcp(port))
            }
        };
        let (address, port) = match listen.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), listen),
            Some((address, port)) => {
                let plain = address
                    .strip_prefix('[')
                    .and_then(|rest| rest.strip_suffix(']'));
                let address = plain.unwrap_or(address);
                let wrong = |_| format!("{address:?} is no IP address");
                (address.parse().map_err(wrong)?, port)
            }
        };
        let port = port
            .parse()
            .map_err(|_| format!("{port:?} is no port of this host, expected 0 to 65535"))?;
        Ok(Self {
            listen: SocketAddr::new(address, port),
            target,
        })
    }
}

impl PortForwardArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Outcome {
        let id = &self.id;
        let vsock = vsock_of(context, id)?;
        let dir = context.state.find_running(id)?.dir;
        let end = Background::start("end", move || ask(&dir, Request::Wait, None))
            .context("Cannot start a thread")?;
        let signals = Signals::catch(&[SIGHUP, SIGINT, SIGTERM]).context("Cannot catch signals")?;
        let listeners = self.rules.iter().map(listen);
        let listeners = listeners.collect::<anyhow::Result<Vec<TcpListener>>>()?;
        for (listener, rule) in listeners.iter().zip(&self.rules) {
            let address = listener.local_addr().context("Cannot tell the port")?;
            output::line(format!("{address} -> {id}:{}", shown(&rule.target)))?;
        }
        let forwarder = Forwarder::new(&vsock, id);
        loop {
            let mut fds = vec![
                PollFd::new(&end, PollFlags::IN),
                PollFd::new(&signals, PollFlags::IN),
            ];
            fds.extend(
                listeners
                    .iter()
                    .map(|listener| PollFd::new(listener, PollFlags::IN)),
            );
            poll::wait(&mut fds, None).context("Cannot wait for connections")?;
            if !signals.take().is_empty() {
                return Ok(SUCCESS);
            }
            match end.take() {
                Some(Ok(Reply::Ended { end })) => bail!("VM {id} has ended: {}", end.message),
                Some(_) => bail!("VM {id} has ended"),
                None => {}
            }
            for (listener, rule) in listeners.iter().zip(&self.rules) {
                forwarder.accept(listener, &rule.target)?;
            }
        }
    }
}

fn listen(rule: &Rule) -> anyhow::Result<TcpListener> {
    let context = || format!("Cannot listen on {}", rule.listen);
    let listener = TcpListener::bind(rule.listen).with_context(context)?;
    listener.set_nonblocking(true).with_context(context)?;
    Ok(listener)
}

fn shown(target: &Target) -> String {
    match target {
        Target::Tcp(port) => port.to_string(),
        Target::Unix(path) => path.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_an_address_a_port_and_a_target() {
        let parse = |text: &str| {
            let rule: Rule = text.parse().unwrap();
            (rule.listen.to_string(), shown(&rule.target))
        };
        let expect = |listen: &str, target: &str| (listen.to_owned(), target.to_owned());
        assert_eq!(parse("8080:80"), expect("127.0.0.1:8080", "80"));
        assert_eq!(parse("0:/run/a:b"), expect("127.0.0.1:0", "/run/a:b"));
        assert_eq!(parse("0.0.0.0:1:2"), expect("0.0.0.0:1", "2"));
        assert_eq!(parse("[::1]:1:/s"), expect("[::1]:1", "/s"));
        for wrong in [
            "", "80", "80:", ":80", "1:0", "1:65536", "x:1", "host:1:2", "65536:1", "1:run",
        ] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
    }
}
