//! The VM generation id: 16 bytes in guest memory that change when the machine was cloned.
//!
//! The guest's driver finds their address through ACPI (`VM_Gen_Counter`) and hears of a change
//! through the GED. Linux reseeds its random number generator then.

use std::fmt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// One generation of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationId([u8; 16]);

impl GenerationId {
    /// A generation with the given 128 random bits.
    #[must_use]
    pub fn new(bits: [u8; 16]) -> Self {
        Self(bits)
    }

    /// The bits, as the guest sees them.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Puts the id where the guest looks for it. Tell the guest through the GED afterwards.
    ///
    /// # Errors
    /// `address` is not guest memory.
    pub fn store(
        &self,
        memory: &GuestMemoryMmap,
        address: GuestAddress,
    ) -> Result<(), vm_memory::GuestMemoryError> {
        memory.write_slice(&self.0, address)
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_stored_where_the_guest_looks() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let id = GenerationId::new(*b"0123456789abcdef");
        id.store(&memory, GuestAddress(0x100)).unwrap();
        let mut seen = [0; 16];
        memory.read_slice(&mut seen, GuestAddress(0x100)).unwrap();
        assert_eq!(&seen, id.bytes());
        assert!(id.store(&memory, GuestAddress(4090)).is_err());
    }
}
