//! Brings up the loopback interface.

use std::io;

use netlink::Netlink;
use netlink::links::Change;

use crate::error::Error;

/// The loopback interface is the first that a network namespace gets.
const LOOPBACK_INDEX: u32 = 1;

/// Sets the interface up.
pub fn bring_up() -> Result<(), Error> {
    set_up().map_err(Error::system("set interface lo up"))
}

fn set_up() -> io::Result<()> {
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    Netlink::open()?.change(LOOPBACK_INDEX, &up)
}
