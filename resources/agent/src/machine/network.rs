//! Gives the guest's network interface the address, routes and size that the host wants it to have.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink::Netlink;
use netlink::links::{Change, Link};
use proto::guest::Network;

use crate::error::{Error, Refusal};

/// Devices of the kernel's driver, each with a directory `net` that has the interface's name.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
/// How long the kernel may take to see that the link is up: it was told before the guest ran.
const CARRIER_PATIENCE: Duration = Duration::from_secs(2);

/// What the interface is to be.
#[derive(Debug)]
pub struct Setup {
    mac: [u8; 6],
    addresses: Vec<IpNet>,
    gateways: Vec<IpAddr>,
    mtu: Option<u32>,
}

impl Setup {
    /// Reads the host's wishes.
    pub fn of(network: &Network) -> Result<Self, Refusal> {
        let mac = <[u8; 6]>::try_from(&network.mac[..]).map_err(|_| {
            let found = network.mac.len();
            Refusal::invalid(format!("Network address of {found} bytes, expected 6"))
        })?;
        let addresses = network.addresses.iter().map(|text| {
            text.parse().map_err(|_| {
                Refusal::invalid(format!("IP address {text:?}, expected ADDRESS/PREFIX"))
            })
        });
        let gateways = network.gateways.iter().map(|text| {
            let wrong = |_| Refusal::invalid(format!("Gateway {text:?}, expected an IP address"));
            text.parse().map_err(wrong)
        });
        Ok(Self {
            mac,
            addresses: addresses.collect::<Result<_, _>>()?,
            gateways: gateways.collect::<Result<_, _>>()?,
            mtu: Some(network.mtu).filter(|mtu| *mtu != 0),
        })
    }

    /// Sets the interface up, and tells the network where its addresses are now. Returns its name.
    ///
    /// The interface is down meanwhile and has no address but its own when it comes up, so that nothing of
    /// the template's is ever heard on the network.
    pub fn apply(&self) -> Result<String, Error> {
        let name = interface()?;
        let mut netlink = Netlink::open().map_err(Error::system("open a netlink socket"))?;
        let link = netlink
            .link(&name)
            .map_err(Error::system("find the network interface"))?;
        self.bring_up(&mut netlink, &link)
            .map_err(Error::system("set up the network interface"))?;
        self.announce(&mut netlink, &link)
            .map_err(Error::system("announce the network interface"))?;
        Ok(name)
    }

    fn bring_up(&self, netlink: &mut Netlink, link: &Link) -> io::Result<()> {
        let down = Change {
            up: Some(false),
            ..Change::default()
        };
        netlink.change(link.index, &down)?;
        netlink.flush_addresses(link.index)?;
        let own = Change {
            address: Some(self.mac),
            mtu: self.mtu,
            ..Change::default()
        };
        netlink.change(link.index, &own)?;

        let mut news = Netlink::listen_to_links()?;
        let up = Change {
            up: Some(true),
            ..Change::default()
        };
        netlink.change(link.index, &up)?;
        wait_for_carrier(netlink, &mut news, link)?;
        for address in &self.addresses {
            netlink.add_address(link.index, *address)?;
        }
        for gateway in &self.gateways {
            netlink.add_gateway(link.index, *gateway)?;
        }
        Ok(())
    }

    /// The kernel sends gratuitous ARP and unsolicited neighbour advertisements for all addresses of an
    /// interface whose own address is set, be it the same, when it is told to.
    fn announce(&self, netlink: &mut Netlink, link: &Link) -> io::Result<()> {
        for (version, setting) in [("ipv4", "arp_notify"), ("ipv6", "ndisc_notify")] {
            let path = format!("/proc/sys/net/{version}/conf/{}/{setting}", link.name);
            // A kernel without IPv6 has nothing to announce by it.
            if Path::new(&path).exists() {
                fs::write(path, "1")?;
            }
        }
        let own = Change {
            address: Some(self.mac),
            ..Change::default()
        };
        netlink.change(link.index, &own)
    }
}

/// The name of the first interface of the VMM's network device.
fn interface() -> Result<String, Error> {
    let missing = || Error::NoNetwork;
    let devices = fs::read_dir(DRIVER).map_err(|_| missing())?;
    let mut names: Vec<String> = devices
        .filter_map(|device| fs::read_dir(device.ok()?.path().join("net")).ok())
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names.into_iter().next().ok_or_else(missing)
}

/// The driver looks at the device's status in its own time.
fn wait_for_carrier(netlink: &mut Netlink, news: &mut Netlink, link: &Link) -> io::Result<()> {
    let deadline = Instant::now() + CARRIER_PATIENCE;
    while !netlink.link(&link.name)?.is_running {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let text = format!("{} has no link", link.name);
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        news.news(left)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> Network {
        Network {
            mac: vec![2, 0, 0, 0, 0, 1],
            addresses: vec!["10.0.0.2/24".to_owned(), "fd00::2/64".to_owned()],
            gateways: vec!["10.0.0.1".to_owned()],
            ..Network::default()
        }
    }

    #[test]
    fn wishes_are_read() {
        let setup = Setup::of(&network()).unwrap();
        assert_eq!(setup.mac, [2, 0, 0, 0, 0, 1]);
        assert_eq!(setup.addresses[1].prefix_len(), 64);
        assert_eq!(setup.gateways, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(setup.mtu, None);
    }

    #[test]
    fn wrong_wishes_are_refused() {
        let refusal = |change: fn(&mut Network)| {
            let mut network = network();
            change(&mut network);
            Setup::of(&network).unwrap_err().message
        };
        assert!(refusal(|network| network.mac.clear()).contains("0 bytes, expected 6"));
        assert!(refusal(|network| network.addresses[0] = "10.0.0.2".to_owned()).contains("PREFIX"));
        assert!(refusal(|network| network.gateways[0] = "x".to_owned()).contains("Gateway"));
    }
}
