//! PID 1 before the agent is: jobs that a template is to be frozen with.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::{Error, identity};

/// The agent, which the kernel would have started.
const AGENT: &str = "/init";
/// What the agent loads; it does not mind that it is loaded.
const MODULES: &str = "/etc/minivmm/modules";
/// The agent gives a guest that has this file an id of its own.
const MACHINE_ID: &str = "/etc/machine-id";
/// From include/uapi/linux/module.h: the kernel decompresses the file.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;
/// Between two looks for the vsock device.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Starts the jobs one after the other, each when the one before is ready, and becomes the agent.
pub fn run(jobs: &[&str]) -> Result<(), Error> {
    for (target, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")] {
        fs::create_dir_all(target)?;
        match mount(kind, target, kind, MountFlags::empty(), None) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(format!("cannot mount {target}: {errno}").into()),
        }
    }
    File::create(MACHINE_ID)?;
    load_modules()?;
    while identity::local_cid().is_none() {
        std::thread::sleep(LOOK_AGAIN);
    }
    for job in jobs.split(|word| *word == "/") {
        start(job)?;
    }
    Err(Command::new(AGENT).exec().into())
}

fn load_modules() -> Result<(), Error> {
    let list = match fs::read_to_string(MODULES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        list => list?,
    };
    for line in list.lines().filter(|line| !line.starts_with('#')) {
        let (path, parameters) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        if path.is_empty() {
            continue;
        }
        let plain = Path::new(path).extension().is_some_and(|ext| ext == "ko");
        let flags = if plain {
            0
        } else {
            MODULE_INIT_COMPRESSED_FILE
        };
        let parameters = CString::new(parameters.trim())?;
        match rustix::system::finit_module(File::open(path)?, &parameters, flags) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(format!("cannot load {path}: {errno}").into()),
        }
    }
    Ok(())
}

fn start(job: &[&str]) -> Result<(), Error> {
    let mut child = Command::new("/proc/self/exe")
        .args(job)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line)?;
    }
    if line == "ready\n" {
        Ok(())
    } else {
        Err(format!("{job:?} said {line:?}, expected 'ready'").into())
    }
}
