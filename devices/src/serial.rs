//! The serial console: a 16550A UART that feeds a [`Console`] and takes typed input.

use crate::bus::BusDevice;
use crate::console::Console;
use crate::irq::IrqLine;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use vm_superio::serial::{NoEvents, SerialState as UartState};
use vm_superio::{Serial as Uart, Trigger};

/// First I/O port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// Ports a UART takes.
pub const PORTS: u8 = 8;
/// Version of [`SerialState`] in a state file.
pub const SERIAL_STATE_VERSION: u16 = 1;

/// Input that can wait for the guest to read it, in bytes.
const INPUT_CAPACITY: usize = 64 * 1024;

/// Bytes in the UART's receive FIFO when it is full.
///
/// Only one is ever put there. The UART drops its "received data" interrupt with every byte that is
/// read, also when more are left, and a driver that stops in between (Linux does after 256 bytes) would
/// never come back for them. With one byte at a time each comes with an interrupt of its own.
const FIFO_BYTES: usize = 64;

/// Registers: received data, interrupt enable, line control; and the bit of the last that hides the
/// first two.
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const LINE_CONTROL: u8 = 3;
const DIVISOR_LATCH: u8 = 1 << 7;

/// The UART's registers and the input that the guest has not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

/// The UART refused a saved state.
#[derive(Debug, thiserror::Error)]
#[error("Serial port state is not valid: {0}")]
pub struct SerialError(String);

#[derive(Debug)]
struct LineTrigger(Box<dyn IrqLine>);

impl Trigger for LineTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.raise()
    }
}

#[derive(Debug)]
struct ConsoleWriter(Arc<Console>);

impl Write for ConsoleWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// COM1 of the guest.
pub struct Serial {
    uart: Uart<LineTrigger, NoEvents, ConsoleWriter>,
    /// Typed input behind the byte that is in the UART.
    waiting: VecDeque<u8>,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial")
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// A UART after power-on.
    #[must_use]
    pub fn new(line: Box<dyn IrqLine>, console: Arc<Console>) -> Self {
        let uart = Uart::new(LineTrigger(line), ConsoleWriter(console));
        Self {
            uart,
            waiting: VecDeque::new(),
        }
    }

    /// A UART as it was saved. Pending interrupts are sent again.
    ///
    /// # Errors
    /// More input than the FIFO holds, or the interrupt line fails.
    pub fn restore(
        line: Box<dyn IrqLine>,
        console: Arc<Console>,
        state: &SerialState,
    ) -> Result<Self, SerialError> {
        if state.input.len() > FIFO_BYTES {
            let found = state.input.len();
            return Err(SerialError(format!(
                "{found} bytes in a FIFO of {FIFO_BYTES}"
            )));
        }
        let mut input = state.input.iter().copied();
        let registers = UartState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: input.next().into_iter().collect(),
        };
        let uart = Uart::from_state(
            &registers,
            LineTrigger(line),
            NoEvents,
            ConsoleWriter(console),
        )
        .map_err(|error| SerialError(format!("{error:?}")))?;
        Ok(Self {
            uart,
            waiting: input.collect(),
        })
    }

    /// The registers, and the input in the FIFO. Input behind the FIFO belongs to the host's
    /// terminal session, not to the machine, and is not saved.
    #[must_use]
    pub fn save(&self) -> SerialState {
        let state = self.uart.state();
        SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }

    /// Types `input` on the guest's console; returns how many bytes found room.
    pub fn push_input(&mut self, input: &[u8]) -> usize {
        let room = INPUT_CAPACITY.saturating_sub(self.waiting.len());
        let accepted = input.get(..room).unwrap_or(input);
        self.waiting.extend(accepted);
        self.refill();
        accepted.len()
    }

    /// Gives the UART the next byte when it has none. In loop-back mode it takes none.
    fn refill(&mut self) {
        if self.uart.fifo_capacity() < FIFO_BYTES {
            return;
        }
        let Some(byte) = self.waiting.pop_front() else {
            return;
        };
        match self.uart.enqueue_raw_bytes(&[byte]) {
            Ok(1..) => {}
            Ok(0) => self.waiting.push_front(byte),
            Err(error) => tracing::error!(?error, "Serial input is not announced"),
        }
    }

    /// Announces a byte again that came while its interrupt was disabled, as a UART does when the
    /// interrupt is enabled.
    fn announce(&mut self) {
        let hidden = self.uart.read(LINE_CONTROL) & DIVISOR_LATCH != 0;
        if !hidden && self.uart.fifo_capacity() < FIFO_BYTES {
            self.waiting.push_front(self.uart.read(DATA));
        }
        self.refill();
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else {
            return;
        };
        *byte = self.uart.read(offset);
        if !self.waiting.is_empty() {
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else {
            return;
        };
        if let Err(error) = self.uart.write(offset, *byte) {
            tracing::error!(?error, "Serial port write failed");
        }
        if u64::from(offset) == INTERRUPT_ENABLE {
            self.announce();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::testing::CountingLine;

    const DATA: u64 = super::DATA as u64;
    const INTERRUPT_IDENTIFICATION: u64 = 2;
    const LINE_STATUS: u64 = 5;
    const MODEM_CONTROL: u64 = 4;
    const NO_INTERRUPT: u8 = 1;
    const LOOP_BACK: u8 = 1 << 4;

    fn read(serial: &mut Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn output_reaches_the_console() {
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(CountingLine::default()), console.clone());
        for byte in b"hi" {
            serial.write(DATA, &[*byte]);
        }
        assert_eq!(console.take().bytes, b"hi");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole() {
        let line = CountingLine::default();
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(line.clone()), console);
        serial.write(INTERRUPT_ENABLE, &[1]);
        let typed: Vec<u8> = (0..200).collect();
        assert_eq!(serial.push_input(&typed), 200);
        assert!(line.raised() > 0);
        let mut seen = Vec::new();
        while read(&mut serial, LINE_STATUS) & 1 != 0 {
            seen.push(read(&mut serial, DATA));
        }
        assert_eq!(seen, typed);
    }

    /// What Linux's driver does with an interrupt.
    fn interrupted(serial: &mut Serial, seen: &mut Vec<u8>) {
        while read(serial, INTERRUPT_IDENTIFICATION) & NO_INTERRUPT == 0 {
            for _ in 0..256 {
                if read(serial, LINE_STATUS) & 1 == 0 {
                    break;
                }
                seen.push(read(serial, DATA));
            }
        }
    }

    #[test]
    fn driver_that_reads_256_bytes_at_a_time_reads_all() {
        for length in [255, 256, 257, 288, 512, 20_000] {
            let console = Arc::new(Console::new().unwrap());
            let mut serial = Serial::new(Box::new(CountingLine::default()), console);
            serial.write(INTERRUPT_ENABLE, &[1]);
            serial.push_input(&vec![b'x'; length]);
            let mut seen = Vec::new();
            interrupted(&mut serial, &mut seen);
            assert_eq!(seen.len(), length);
        }
    }

    #[test]
    fn input_that_came_before_the_interrupt_was_enabled_is_announced() {
        let line = CountingLine::default();
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(line.clone()), console);
        serial.push_input(b"abc");
        assert_eq!(line.raised(), 0);
        serial.write(INTERRUPT_ENABLE, &[1]);
        assert!(line.raised() > 0);
        let mut seen = Vec::new();
        interrupted(&mut serial, &mut seen);
        assert_eq!(seen, b"abc");
    }

    #[test]
    fn input_waits_while_the_uart_is_in_loop_back_mode() {
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(CountingLine::default()), console);
        serial.write(MODEM_CONTROL, &[LOOP_BACK]);
        serial.push_input(b"abc");
        serial.write(MODEM_CONTROL, &[0]);
        serial.write(INTERRUPT_ENABLE, &[1]);
        let mut seen = Vec::new();
        interrupted(&mut serial, &mut seen);
        assert_eq!(seen, b"abc");
    }

    #[test]
    fn fifo_of_a_saved_uart_is_read_to_its_end() {
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(CountingLine::default()), console.clone());
        serial.write(INTERRUPT_ENABLE, &[1]);
        let state = SerialState {
            input: b"typed".to_vec(),
            line_status: read(&mut serial, LINE_STATUS) | 1,
            ..serial.save()
        };
        let mut restored =
            Serial::restore(Box::new(CountingLine::default()), console, &state).unwrap();
        let mut seen = Vec::new();
        while read(&mut restored, LINE_STATUS) & 1 != 0 {
            seen.push(read(&mut restored, DATA));
        }
        assert_eq!(seen, b"typed");
    }

    #[test]
    fn input_beyond_the_capacity_is_not_accepted() {
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(CountingLine::default()), console);
        let accepted = serial.push_input(&vec![b'x'; INPUT_CAPACITY + 100]);
        assert_eq!(accepted, INPUT_CAPACITY);
    }

    #[test]
    fn saved_uart_goes_on_with_its_input_and_interrupt() {
        let console = Arc::new(Console::new().unwrap());
        let mut serial = Serial::new(Box::new(CountingLine::default()), console.clone());
        serial.write(INTERRUPT_ENABLE, &[1]);
        serial.push_input(b"z");
        let state = serial.save();

        let line = CountingLine::default();
        let mut restored = Serial::restore(Box::new(line.clone()), console, &state).unwrap();
        assert_eq!(restored.save(), state);
        assert!(line.raised() > 0);
        assert_eq!(read(&mut restored, DATA), b'z');
    }

    #[test]
    fn state_with_an_impossible_fifo_is_refused() {
        let console = Arc::new(Console::new().unwrap());
        let state = SerialState {
            input: vec![0; 65],
            ..SerialState::default()
        };
        assert!(Serial::restore(Box::new(CountingLine::default()), console, &state).is_err());
    }
}
