//! Pages of a guest's memory that are used for something else while it stands still.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Bytes of a page.
pub(super) const PAGE: usize = 4096;

/// The pages, and what is to be in them again. Where it is not given back, the guest is damaged.
#[must_use]
pub(super) struct Loan {
    pages: Vec<GuestAddress>,
    contents: Vec<u8>,
    /// One word more, such as an entry of a table.
    word: (GuestAddress, u64),
}

impl Loan {
    /// Remembers what is in the pages and in the word.
    ///
    /// # Errors
    /// They are not the guest's.
    pub(super) fn take(
        memory: &GuestMemoryMmap,
        pages: Vec<GuestAddress>,
        word: GuestAddress,
    ) -> Result<Self, GuestMemoryError> {
        let mut contents = vec![0; pages.len() * PAGE];
        for (page, content) in pages.iter().zip(contents.chunks_mut(PAGE)) {
            memory.read_slice(content, *page)?;
        }
        let word = (word, memory.read_obj(word)?);
        Ok(Self {
            pages,
            contents,
            word,
        })
    }

    /// The pages.
    pub(super) fn pages(&self) -> &[GuestAddress] {
        &self.pages
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// They are not the guest's any more.
    pub(super) fn give_back(self, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        for (page, content) in self.pages.iter().zip(self.contents.chunks(PAGE)) {
            memory.write_slice(content, *page)?;
        }
        let (place, value) = self.word;
        memory.write_obj(value, place)
    }
}
