//! Tests of the disk, driven through its queues.

mod driver;
mod hostile;
mod model;
mod requests;
