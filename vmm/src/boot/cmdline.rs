//! The kernel command line.

use crate::layout::{CMDLINE, CMDLINE_CAPACITY};
use vm_memory::{Bytes, GuestMemoryMmap};

/// The command line cannot be given to the kernel as it is.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// Linux would cut it silently.
    #[error(
        "Kernel command line has {length} bytes, the kernel takes at most {max}; shorten --cmdline"
    )]
    TooLong {
        /// Bytes.
        length: usize,
        /// Most bytes.
        max: usize,
    },
    /// A character that ends or breaks the line.
    #[error("Kernel command line has a control character (byte {byte:#04x} at {position})")]
    Control {
        /// The character.
        byte: u8,
        /// Its offset in bytes.
        position: usize,
    },
    /// Low memory is missing.
    #[error("Kernel command line cannot be written to guest memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// Checks a command line without a machine. It is passed on byte for byte: everything behind
/// `--` belongs to init, in the order given.
///
/// # Errors
/// Too long, or not one line.
pub fn check(cmdline: &str) -> Result<(), CmdlineError> {
    let (length, max) = (cmdline.len(), CMDLINE_CAPACITY - 1);
    if length > max {
        return Err(CmdlineError::TooLong { length, max });
    }
    match cmdline
        .bytes()
        .enumerate()
        .find(|(_, byte)| byte.is_ascii_control())
    {
        Some((position, byte)) => Err(CmdlineError::Control { byte, position }),
        None => Ok(()),
    }
}

/// A command line in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// Bytes without the NUL.
    pub length: u32,
}

/// Writes the line and its NUL.
pub(super) fn write(memory: &GuestMemoryMmap, cmdline: &str) -> Result<Written, CmdlineError> {
    check(cmdline)?;
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, CMDLINE)
        .map_err(CmdlineError::Memory)?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked against the capacity"
    )]
    let length = cmdline.len() as u32;
    Ok(Written { length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_line_is_taken_and_one_more_byte_is_not() {
        assert!(check(&"x".repeat(2047)).is_ok());
        let error = check(&"x".repeat(2048)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Kernel command line has 2048 bytes, the kernel takes at most 2047; shorten --cmdline"
        );
    }

    #[test]
    fn line_breaks_are_refused_and_other_text_is_not() {
        assert!(matches!(
            check("a\nb"),
            Err(CmdlineError::Control {
                byte: 10,
                position: 1
            })
        ));
        assert!(check("console=ttyS0 x=\"a b\" naïve -- a --b -- c").is_ok());
    }

    #[test]
    fn line_is_written_as_it_is() {
        let memory =
            GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), 1 << 20)]).unwrap();
        let line = "foo --bar -- init --baz";
        assert_eq!(write(&memory, line).unwrap().length, 23);
        let mut seen = vec![0xff; 24];
        memory.read_slice(&mut seen, CMDLINE).unwrap();
        assert_eq!(seen, [line.as_bytes(), b"\0"].concat());
    }
}
