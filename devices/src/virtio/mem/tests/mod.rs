//! The device and a driver, over a real virtqueue in real guest memory.

mod device;
mod driver;
mod hostile;
mod model;
mod sizes;
