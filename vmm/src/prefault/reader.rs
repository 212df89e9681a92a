//! A program of a few instructions that reads a byte of each of many pages, in the address space of a guest that
//! stands still.
//!
//! It leaves the control registers as they are, because KVM up to Linux 6.3 forgets what it has mapped when one
//! changes. So it brings its page tables with it, in pages that are borrowed, and hangs them into the one entry of
//! the guest's top table that Linux leaves to hypervisors (Documentation/arch/x86/x86_64/mm.rst, the guard hole at
//! the start of the kernel's half). What a TLB remembers of them is of no address that the guest uses.

use super::{PrefaultError, loan::Loan};
use crate::kvm::vcpu_state::LongMode;
use kvm_bindings::kvm_regs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What the program reads in one run: an entry of its page directory each, and one for itself.
pub(super) const BATCH: usize = ENTRIES - 1;
/// Where the program tells that it is done.
pub(super) const DONE: u16 = 0xf4;

/// Entries of a page table.
const ENTRIES: usize = 512;
/// Bytes that an entry of a page directory maps.
const CHUNK: u64 = 2 << 20;
/// The guard hole's entry in the top table.
const SLOT: u64 = 256;
/// Bits of a linear address that tables below the page directory's entries do not resolve.
const CHUNK_BITS: u32 = 21;
/// Bits of a linear address that each table resolves.
const TABLE_BITS: u32 = 9;

/// Present, writable, accessed.
const TABLE: u64 = 0x23;
/// The same, and dirty, and no further table.
const LEAF: u64 = 0xe3;

/// Where the numbers are that the program reads, behind its code.
const LIST: u64 = 16;

/// The code. RBX is where the page directory begins to map, RSI the list, RCX its length.
const CODE: [u8; 15] = [
    0x0f, 0x20, 0xd8, // mov rax, cr3
    0x0f, 0x22, 0xd8, // mov cr3, rax: the page directory is not what it was in the last run
    0xad, // next: lodsd
    0xf6, 0x04, 0x03, 0x00, // test byte ptr [rbx+rax], 0
    0xe2, 0xf9, // loop next
    0xe6, 0xf4, // out DONE, al
];

/// The program in a guest's memory.
pub(super) struct Reader {
    code: GuestAddress,
    directory: GuestAddress,
    base: u64,
}

impl Reader {
    /// How many pages it borrows from a guest with these page tables.
    pub(super) fn pages(mode: LongMode) -> usize {
        // The code, the page directory, and what is between that and the top table.
        2 + tables_between(mode)
    }

    /// Writes the program to pages on loan, and hangs its page tables into the guest's.
    ///
    /// # Errors
    /// The guest uses the entry that Linux does not use, or these are no pages of its.
    pub(super) fn install(
        memory: &GuestMemoryMmap,
        mode: LongMode,
        loan: &Loan,
    ) -> Result<Self, PrefaultError> {
        let entry = hook(mode);
        if memory.read_obj::<u64>(entry)? != 0 {
            return Err(PrefaultError::Occupied);
        }
        let [code, directory, between @ ..] = loan.pages() else {
            return Err(PrefaultError::Pages);
        };
        memory.write_slice(&CODE, *code)?;
        memory.write_slice(&[0; ENTRIES * 8], *directory)?;
        let own = directory.0 + BATCH as u64 * 8;
        memory.write_obj((code.0 & !(CHUNK - 1)) | LEAF, GuestAddress(own))?;
        let mut below = *directory;
        for table in between {
            memory.write_obj(below.0 | TABLE, *table)?;
            below = *table;
        }
        memory.write_obj(below.0 | TABLE, entry)?;
        let top_bits = CHUNK_BITS + TABLE_BITS * (1 + u32::try_from(between.len()).unwrap_or(0));
        Ok(Self {
            code: *code,
            directory: *directory,
            // All bits above the highest that counts are the same.
            base: (SLOT << top_bits).wrapping_neg(),
        })
    }

    /// Makes it read these pages in the next run, [`BATCH`] at most, which begins with the registers that are
    /// returned.
    ///
    /// # Errors
    /// The pages on loan are not the guest's.
    pub(super) fn aim(
        &self,
        memory: &GuestMemoryMmap,
        pages: &[GuestAddress],
    ) -> Result<kvm_regs, PrefaultError> {
        let pages = &pages[..pages.len().min(BATCH)];
        let mut entries = Vec::with_capacity(pages.len() * 8);
        let mut list = Vec::with_capacity(pages.len() * 4);
        for (number, page) in (0u32..).zip(pages) {
            entries.extend(((page.0 & !(CHUNK - 1)) | LEAF).to_le_bytes());
            let inside = u32::try_from(page.0 & (CHUNK - 1)).unwrap_or(0);
            list.extend((number << CHUNK_BITS | inside).to_le_bytes());
        }
        memory.write_slice(&entries, self.directory)?;
        memory.write_slice(&list, GuestAddress(self.code.0 + LIST))?;
        let code = self.base + BATCH as u64 * CHUNK + (self.code.0 & (CHUNK - 1));
        Ok(kvm_regs {
            rip: code,
            rbx: self.base,
            rsi: code + LIST,
            rcx: pages.len() as u64,
            ..Default::default()
        })
    }
}

/// The entry of the guest's top table that leads to ours.
pub(super) fn hook(mode: LongMode) -> GuestAddress {
    GuestAddress(mode.top_table + SLOT * 8)
}

/// Tables between the top table and a page directory.
fn tables_between(mode: LongMode) -> usize {
    if mode.five_levels { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: u64 = 0x1000;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap()
    }

    fn mode(five_levels: bool) -> LongMode {
        LongMode {
            top_table: TOP,
            five_levels,
        }
    }

    fn loan(memory: &GuestMemoryMmap, mode: LongMode) -> Loan {
        let pages = [0x20_3000, 0x5000, 0x6000, 0x7000].map(GuestAddress);
        let pages = pages[..Reader::pages(mode)].to_vec();
        Loan::take(memory, pages, hook(mode)).unwrap()
    }

    /// What a CPU finds at a linear address.
    fn walk(memory: &GuestMemoryMmap, mode: LongMode, linear: u64) -> u64 {
        let levels = if mode.five_levels { 5 } else { 4 };
        let significant = 12 + 9 * levels;
        let sign = (linear as i64) >> (significant - 1);
        assert!(sign == 0 || sign == -1, "{linear:#x} is not canonical");
        let mut table = mode.top_table;
        for level in (2..=levels).rev() {
            let index = (linear >> (12 + 9 * (level - 1))) & 0x1ff;
            let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).unwrap();
            assert_eq!(entry & 3, 3, "level {level} of {linear:#x}");
            let is_leaf = entry & 0x80 != 0;
            assert_eq!(is_leaf, level == 2);
            table = entry & 0x000f_ffff_ffff_f000;
        }
        table + (linear & (CHUNK - 1))
    }

    #[test]
    fn the_program_finds_itself_and_its_pages_with_four_and_five_levels() {
        for mode in [mode(false), mode(true)] {
            let memory = memory();
            let loan = loan(&memory, mode);
            let reader = Reader::install(&memory, mode, &loan).unwrap();
            let pages: Vec<_> = (0..BATCH as u64)
                .map(|n| GuestAddress((n * 37 % 31) * CHUNK + n * 0x1000 % CHUNK))
                .collect();
            let start = reader.aim(&memory, &pages).unwrap();
            let at = |linear| GuestAddress(walk(&memory, mode, linear));
            let mut code = CODE;
            memory.read_slice(&mut code, at(start.rip)).unwrap();
            assert_eq!(code, CODE);
            assert_eq!(start.rcx, pages.len() as u64);
            for (number, page) in (0..).zip(&pages) {
                let entry: u32 = memory.read_obj(at(start.rsi + number * 4)).unwrap();
                assert_eq!(at(start.rbx + u64::from(entry)), *page);
            }
        }
    }

    #[test]
    fn nothing_is_written_to_a_guest_that_uses_the_hook() {
        let memory = memory();
        memory.write_obj(2u64, hook(mode(false))).unwrap();
        let loan = loan(&memory, mode(false));
        let refused = Reader::install(&memory, mode(false), &loan);
        assert!(matches!(refused, Err(PrefaultError::Occupied)));
        let untouched: u64 = memory.read_obj(GuestAddress(0x20_3000)).unwrap();
        assert_eq!(untouched, 0);
    }

    #[test]
    fn a_loan_is_given_back_whole() {
        let memory = memory();
        memory
            .write_slice(&[9; 3 * PAGE_BYTES], GuestAddress(0x5000))
            .unwrap();
        let mode = mode(true);
        let loan = loan(&memory, mode);
        let reader = Reader::install(&memory, mode, &loan).unwrap();
        reader.aim(&memory, &[GuestAddress(0x1234_5678)]).unwrap();
        loan.give_back(&memory).unwrap();
        let mut seen = [0; 3 * PAGE_BYTES];
        memory.read_slice(&mut seen, GuestAddress(0x5000)).unwrap();
        assert!(seen.iter().all(|&byte| byte == 9));
        let code: u64 = memory.read_obj(GuestAddress(0x20_3000)).unwrap();
        let entry: u64 = memory.read_obj(hook(mode)).unwrap();
        assert_eq!((code, entry), (0, 0));
    }

    const PAGE_BYTES: usize = super::super::loan::PAGE;

    #[test]
    fn a_table_that_is_no_memory_of_the_guests_is_an_error() {
        let memory = memory();
        let nowhere = LongMode {
            top_table: 0xffff_0000_0000,
            five_levels: false,
        };
        assert!(Loan::take(&memory, Vec::new(), hook(nowhere)).is_err());
    }
}
