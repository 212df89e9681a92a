//! Can this host run what a template's guest was promised?
//!
//! A guest that misses a feature it has seen dies much later, of an illegal instruction. So the
//! feature bits of the template's CPUID have to be a subset of what this host's KVM offers.

use kvm_bindings::kvm_cpuid_entry2;

/// One of the four result registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Leaves whose bits are features: function, index, register.
const FEATURE_WORDS: [(u32, u32, Register); 15] = [
    (0x1, 0, Register::Ecx),
    (0x1, 0, Register::Edx),
    (0x7, 0, Register::Ebx),
    (0x7, 0, Register::Ecx),
    (0x7, 0, Register::Edx),
    (0x7, 1, Register::Eax),
    (0xd, 0, Register::Eax),
    (0xd, 1, Register::Eax),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0007, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_000a, 0, Register::Edx),
    (0x8000_0021, 0, Register::Eax),
];

/// Bits that are no promise of the CPU: what the guest switched on itself (OSXSAVE, OSPKE) and what
/// we set ourselves (hypervisor, hyper-threading). Leaf, register, bits.
const NOT_FEATURES: [(u32, Register, u32); 3] = [
    (0x1, Register::Ecx, 1 << 27 | 1 << 31),
    (0x1, Register::Edx, 1 << 28),
    (0x7, Register::Ecx, 1 << 4),
];

/// Names of the bits that users know, by leaf, register and bit.
const NAMES: [(u32, Register, u32, &str); 22] = [
    (0x1, Register::Ecx, 0, "sse3"),
    (0x1, Register::Ecx, 9, "ssse3"),
    (0x1, Register::Ecx, 12, "fma"),
    (0x1, Register::Ecx, 13, "cx16"),
    (0x1, Register::Ecx, 19, "sse4_1"),
    (0x1, Register::Ecx, 20, "sse4_2"),
    (0x1, Register::Ecx, 21, "x2apic"),
    (0x1, Register::Ecx, 22, "movbe"),
    (0x1, Register::Ecx, 23, "popcnt"),
    (0x1, Register::Ecx, 24, "tsc_deadline_timer"),
    (0x1, Register::Ecx, 25, "aes"),
    (0x1, Register::Ecx, 26, "xsave"),
    (0x1, Register::Ecx, 28, "avx"),
    (0x1, Register::Ecx, 30, "rdrand"),
    (0x7, Register::Ebx, 3, "bmi1"),
    (0x7, Register::Ebx, 5, "avx2"),
    (0x7, Register::Ebx, 8, "bmi2"),
    (0x7, Register::Ebx, 16, "avx512f"),
    (0x7, Register::Ebx, 18, "rdseed"),
    (0x7, Register::Ebx, 29, "sha_ni"),
    (0x7, Register::Edx, 24, "amx_tile"),
    (0x8000_0007, Register::Edx, 8, "constant_tsc"),
];

/// The features that `guest` was promised and `host` lacks, by name where they have one.
#[must_use]
pub fn missing_features(guest: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    for (function, index, register) in FEATURE_WORDS {
        let lacking = word(guest, function, index, register)
            & !word(host, function, index, register)
            & !ignored(function, register);
        missing.extend(
            (0..32)
                .filter(|bit| lacking & (1 << bit) != 0)
                .map(|bit| name(function, index, register, bit)),
        );
    }
    missing
}

fn word(entries: &[kvm_cpuid_entry2], function: u32, index: u32, register: Register) -> u32 {
    let entry = entries
        .iter()
        .find(|e| e.function == function && e.index == index);
    entry.map_or(0, |entry| match register {
        Register::Eax => entry.eax,
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
        Register::Edx => entry.edx,
    })
}

fn ignored(function: u32, register: Register) -> u32 {
    let same = |(f, r, _): &&(u32, Register, u32)| *f == function && *r == register;
    NOT_FEATURES.iter().find(same).map_or(0, |(.., bits)| *bits)
}

fn name(function: u32, index: u32, register: Register, bit: u32) -> String {
    let known = NAMES
        .iter()
        .find(|(f, r, b, _)| *f == function && index == 0 && *r == register && *b == bit);
    known.map_or_else(
        || format!("CPUID {function:#x}.{index} {register:?} bit {bit}"),
        |(.., name)| (*name).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, ebx: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            ebx,
            ecx,
            ..Default::default()
        }
    }

    #[test]
    fn equal_or_richer_host_is_fine() {
        let guest = [leaf(1, 0, 1 << 28), leaf(7, 1 << 5, 0)];
        let host = [leaf(1, 0, 1 << 28 | 1), leaf(7, 1 << 5 | 1 << 16, 0)];
        assert!(missing_features(&guest, &guest).is_empty());
        assert!(missing_features(&guest, &host).is_empty());
    }

    #[test]
    fn lacking_features_are_named() {
        let guest = [leaf(1, 0, 1 << 28 | 1 << 31), leaf(7, 1 << 16 | 1 << 27, 0)];
        let host = [leaf(1, 0, 0)];
        assert_eq!(
            missing_features(&guest, &host),
            ["avx", "avx512f", "CPUID 0x7.0 Ebx bit 27"]
        );
    }
}
