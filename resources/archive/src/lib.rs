//! Trees of files as tar streams, with the rules of `docker cp` for where they go.
//!
//! Host and guest agent use the same code in both directions, and neither trusts the other's stream:
//! - [`mod@pack`] reads a file or a directory; `contents` is what is in one file of it.
//! - [`mod@unpack`] reads a stream; [`place`] says where its root goes, and `input` how much of it may
//!   be read for what.
//! - `tree` is the destination. Nothing in a stream leads out of it: the kernel resolves every name
//!   below the destination's descriptor. Each file appears whole or not at all.

mod contents;
mod error;
mod input;
pub mod pack;
pub mod place;
mod tree;
pub mod unpack;

pub use error::Error;
pub use pack::pack;
pub use unpack::{Layout, Rules, unpack};

/// Takes what is worth telling about a file that was not copied as it is.
pub type Notice<'a> = &'a mut dyn FnMut(String);
