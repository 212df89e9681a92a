//! The saved state of a network device, and the address of a card.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Version of [`NetState`] in a state file. Raise it with any change of the structs here.
pub const NET_STATE_VERSION: u16 = 1;

/// What a clone has to know. Frames that were on their way are lost, as networks may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The card's address, which the guest's kernel uses until it is told another.
    pub mac: MacAddress,
    /// The guest saw a link.
    pub link_up: bool,
}

/// The address of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A locally administered address of one card, made of random bytes.
    #[must_use]
    pub fn local(mut random: [u8; 6]) -> Self {
        random[0] = random[0] & 0xfc | 0x02;
        Self(random)
    }

    /// It can be the address of one card.
    #[must_use]
    pub fn is_of_one_card(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_addresses_are_of_one_card_and_local() {
        for first in 0..=255 {
            let mac = MacAddress::local([first, 1, 2, 3, 4, 5]);
            assert!(mac.is_of_one_card());
            assert_eq!(mac.0[0] & 2, 2);
        }
        assert!(!MacAddress([0; 6]).is_of_one_card());
        assert!(!MacAddress([0xff; 6]).is_of_one_card());
        assert_eq!(
            MacAddress([2, 0, 0, 0, 0, 10]).to_string(),
            "02:00:00:00:00:0a"
        );
    }
}
