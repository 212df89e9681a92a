//! All the firmware there is: 16 bytes that reboot the machine.
//!
//! Linux on a hardware-reduced machine takes EFI for its way to reboot. Where there is no EFI it
//! goes back to real mode and jumps to the reset vector, as a PC's firmware would want it, and not
//! to the ACPI reset register unless the command line says `reboot=a`. So there is something at
//! the vector that writes to that register.

use crate::layout::RESET_VECTOR;
use devices::power::{RESET_PORT, RESET_VALUE};
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

/// Writes the code.
pub(super) fn write(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_slice(&code(), RESET_VECTOR)
}

/// `mov dx, port; mov al, value; out dx, al; hlt; jmp -1`, in 16-bit mode.
fn code() -> [u8; 9] {
    let [low, high] = RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GENERATION_ID, HIGH_MEMORY};

    #[test]
    fn code_fits_between_its_neighbours() {
        const { assert!(GENERATION_ID.0 + 16 <= RESET_VECTOR.0) };
        let end = RESET_VECTOR.0 + code().len() as u64;
        assert!(end <= HIGH_MEMORY.0);
    }
}
