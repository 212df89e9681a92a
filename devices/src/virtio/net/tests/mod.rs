//! The device against drivers, networks, and both at their worst.

mod driver;
mod hostile;
mod traffic;
