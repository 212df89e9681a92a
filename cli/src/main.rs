//! The `minivmm` program: parses the command line, runs one command, prints its error.

#![deny(unsafe_code)]

mod agent;
mod args;
mod attach;
mod background;
mod commands;
mod control;
mod copy;
mod cp;
mod disk_args;
mod env;
mod error;
mod exec;
mod forward;
mod hybrid;
mod id;
mod json_lines;
mod listen;
mod logging;
mod machine_args;
mod net;
mod output;
mod poll;
mod pool;
mod progress;
mod random;
mod signals;
mod state;
mod stream;
mod terminal;
mod timeline;
mod usage;
mod vm_process;
mod warm;

use std::process::ExitCode;

use clap::Parser;

use crate::timeline::Timeline;
use crate::vm_process::early::Early;

fn main() -> ExitCode {
    let timeline = Timeline::start();
    let early = Early::begin(std::env::args_os(), &timeline);
    match args::Cli::parse().run(timeline, early) {
        Ok(code) => ExitCode::from(code),
        Err(error) if error.is::<output::Closed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(format!("error: {}", error::describe(&error)));
            ExitCode::from(error::exit_code(&error))
        }
    }
}
