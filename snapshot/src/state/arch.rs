//! The architecture whose machine is in a state file.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An architecture as it is tagged on disk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// x86-64.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// The architecture this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const CURRENT: Self = Self::X86_64;
    /// The architecture this program was built for.
    #[cfg(target_arch = "aarch64")]
    pub const CURRENT: Self = Self::Aarch64;

    pub(super) const fn tag(self) -> u16 {
        match self {
            Self::X86_64 => 1,
            Self::Aarch64 => 2,
        }
    }

    pub(super) const fn from_tag(tag: u16) -> Option<Self> {
        match tag {
            1 => Some(Self::X86_64),
            2 => Some(Self::Aarch64),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}
