//! A VM's network: what the user asks for, and what it is connected to.

mod namespace;
mod tap;

use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vmm::{MacAddress, NetConfig};

use crate::error::usage;
use crate::random;
use namespace::Redirect;

/// The network of a VM.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Network")]
pub struct NetArgs {
    /// What the guest's network card is connected to: none; tap=NAME, a tap interface, which is made when
    /// it is missing and goes with the VM; or netns=PATH, a network namespace, of whose eth0 the guest
    /// takes over address, routes and MTU
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub net: Option<Mode>,
    /// IP address of the guest with its prefix, for example 10.0.0.2/24; once for each address
    #[arg(long, value_name = "ADDR/PREFIX", value_parser = address, requires = "net")]
    pub ip: Vec<IpNet>,
    /// Gateway of the guest's default route; once for IPv4 and once for IPv6
    #[arg(long, value_name = "ADDR", requires = "ip")]
    pub gateway: Vec<IpAddr>,
    /// Address of the network card [default: a random one]
    #[arg(long, value_name = "MAC", value_parser = mac, requires = "net")]
    pub mac: Option<MacAddress>,
}

/// What the card is connected to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Nothing.
    None,
    /// A tap interface.
    Tap(String),
    /// The eth0 of a network namespace.
    Namespace(PathBuf),
}

/// A network to connect to, every choice made and checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NetPlan {
    place: Mode,
    guest: GuestNetwork,
}

/// What the guest's interface is to be.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GuestNetwork {
    /// Address of the card.
    #[serde(with = "mac_text")]
    pub mac: MacAddress,
    /// IP addresses with their prefixes.
    pub addresses: Vec<IpNet>,
    /// Gateways of the default routes.
    pub gateways: Vec<IpAddr>,
    /// Largest packet in bytes; 0 leaves it to the guest.
    pub mtu: u32,
}

/// A network that a VM is connected to, for as long as this lives.
#[derive(Debug)]
pub struct Network {
    tap: Arc<File>,
    /// What the guest's interface is to be.
    pub guest: GuestNetwork,
    /// Held for its end.
    _redirect: Option<Redirect>,
}

impl NetArgs {
    /// Checks what belongs together; `None` for a VM without a network.
    ///
    /// # Errors
    /// The options contradict each other.
    pub fn resolve(self, with_agent: bool) -> anyhow::Result<Option<NetPlan>> {
        let place = self.net.unwrap_or(Mode::None);
        let given = !self.ip.is_empty() || self.mac.is_some();
        match &place {
            Mode::None if given => {
                return Err(usage("--ip and --mac need a network; give --net tap=NAME"));
            }
            Mode::None => return Ok(None),
            Mode::Namespace(_) if given => {
                return Err(usage(
                    "--ip and --mac do not go with --net netns=PATH, which takes both from the namespace",
                ));
            }
            Mode::Namespace(_) if !with_agent => {
                return Err(usage(
                    "--net netns=PATH needs the guest's agent, which sets the addresses; leave out \
                     --no-agent",
                ));
            }
            Mode::Tap(_) | Mode::Namespace(_) => {}
        }
        if !with_agent && !self.ip.is_empty() {
            return Err(usage("--ip needs the guest's agent; leave out --no-agent"));
        }
        check_gateways(&self.gateway, &self.ip)?;
        let mac = self.mac.map_or_else(random_mac, Ok)?;
        let guest = GuestNetwork::new(mac, self.ip, self.gateway, 0);
        Ok(Some(NetPlan { place, guest }))
    }
}

impl NetPlan {
    /// Makes the connection.
    ///
    /// # Errors
    /// What was named is not there or cannot be used.
    pub fn connect(self) -> anyhow::Result<Network> {
        match self.place {
            Mode::Namespace(path) => namespace::connect(&path),
            Mode::Tap(name) => tap::connect(&name, self.guest),
            // `resolve` makes no plan of it.
            Mode::None => Err(usage("--net none is no network")),
        }
    }
}

impl Network {
    /// The device's part of it.
    pub fn device(&self) -> NetConfig {
        NetConfig {
            mac: self.guest.mac,
            tap: Some(self.tap.clone()),
        }
    }
}

impl GuestNetwork {
    fn new(mac: MacAddress, addresses: Vec<IpNet>, gateways: Vec<IpAddr>, mtu: u32) -> Self {
        Self {
            mac,
            addresses,
            gateways,
            mtu,
        }
    }

    /// The agent's part of it.
    pub fn request(&self) -> proto::guest::Network {
        proto::guest::Network {
            mac: self.mac.0.to_vec(),
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            gateways: self.gateways.iter().map(ToString::to_string).collect(),
            mtu: self.mtu,
            ..Default::default()
        }
    }
}

/// The card of a template, which has no link.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn unconnected() -> anyhow::Result<NetConfig> {
    let mac = random_mac()?;
    Ok(NetConfig { mac, tap: None })
}

fn random_mac() -> anyhow::Result<MacAddress> {
    let mut bytes = [0; 6];
    random::fill(&mut bytes)?;
    Ok(MacAddress::local(bytes))
}

fn check_gateways(gateways: &[IpAddr], addresses: &[IpNet]) -> anyhow::Result<()> {
    for gateway in gateways {
        if !addresses.iter().any(|network| network.contains(gateway)) {
            return Err(usage(format!(
                "--gateway {gateway} is in no network of --ip; give an address in the same network"
            )));
        }
    }
    let of_version = |v4: bool| gateways.iter().filter(|g| g.is_ipv4() == v4).count();
    if of_version(true) > 1 || of_version(false) > 1 {
        return Err(usage(
            "--gateway can be given once for IPv4 and once for IPv6",
        ));
    }
    Ok(())
}

fn mode(text: &str) -> Result<Mode, String> {
    match text.split_once('=') {
        None if text == "none" => Ok(Mode::None),
        Some(("tap", name)) => interface_name(name).map(Mode::Tap),
        Some(("netns", path)) if !path.is_empty() => Ok(Mode::Namespace(path.into())),
        _ => Err("expected none, tap=NAME or netns=PATH".to_owned()),
    }
}

/// What the kernel takes as a name, without the pattern that it would fill in.
fn interface_name(name: &str) -> Result<String, String> {
    let strange = |c: char| !c.is_ascii_graphic() || matches!(c, '/' | ':' | '%');
    if name.is_empty() || name.len() > 15 || name.contains(strange) || matches!(name, "." | "..") {
        return Err(format!(
            "{name:?} cannot be the name of an interface: expected 1 to 15 letters, digits and the like"
        ));
    }
    Ok(name.to_owned())
}

fn address(text: &str) -> Result<IpNet, String> {
    let network: IpNet = text
        .parse()
        .map_err(|_| "expected an address with its prefix, such as 10.0.0.2/24".to_owned())?;
    let address = network.addr();
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!("{address} cannot be the address of a guest"));
    }
    Ok(network)
}

fn mac(text: &str) -> Result<MacAddress, String> {
    let wrong = || "expected an address of one card, such as 02:00:00:00:00:01".to_owned();
    let byte = |part: &str| match part.len() {
        2 => u8::from_str_radix(part, 16).map_err(|_| wrong()),
        _ => Err(wrong()),
    };
    let bytes: Vec<u8> = text.split(':').map(byte).collect::<Result<_, _>>()?;
    let mac = bytes.try_into().map(MacAddress).map_err(|_| wrong())?;
    if mac.is_of_one_card() {
        Ok(mac)
    } else {
        Err(wrong())
    }
}

/// The address of a card as people write it.
mod mac_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use vmm::MacAddress;

    pub fn serialize<S: Serializer>(mac: &MacAddress, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MacAddress, D::Error> {
        super::mac(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
