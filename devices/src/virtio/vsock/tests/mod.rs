//! The device between a driver and host programs, both simulated, over real queues and sockets.

mod connect;
mod guest;
mod hostile;
mod limits;
mod pkt;
mod restore;
mod socket;
mod streams;
