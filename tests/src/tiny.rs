//! Guests of a few instructions, for what needs KVM and no kernel. The host's own KVM can run them where it
//! cannot run a stock kernel.

/// Where the code is, and begins.
pub const ENTRY: u64 = 0x100_0000;

/// An ELF file with one segment that holds `code`, which begins in 64-bit mode.
#[must_use]
pub fn elf(code: &[u8]) -> Vec<u8> {
    let length = code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64
    file.extend([ENTRY, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, rwx
    let words = [120, ENTRY, ENTRY, length, length, 4096];
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    file.extend(code);
    file
}

/// `mov dx, port; mov al, value; out dx, al`
#[must_use]
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}
