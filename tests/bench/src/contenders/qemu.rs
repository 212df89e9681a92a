//! QEMU, in the way of Kata Containers' templates: the guest's memory is a file that clones map privately, and the
//! rest of its state is migrated through a second file (`x-ignore-shared`).
//!
//! The host reaches its guests through vhost-vsock, so their context ids are the host's, one for each clone.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use minivmm_tests::{Guest, LIMIT, scratch};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket,
};
use proto::{AGENT_PORT, READY_PORT};
use serde_json::json;

use super::program::Program;
use super::qmp::Qmp;
use super::{Ready, Vmm, reply};

const QMP: &str = "qmp";
/// `VMADDR_CID_ANY` of `linux/vm_sockets.h`.
const ANY_CID: u32 = u32::MAX;

/// A QEMU with a template of the guest.
pub struct Qemu {
    path: PathBuf,
    guest: Guest,
    template: PathBuf,
    save_time: Duration,
}

impl Qemu {
    /// Boots the guest and saves it.
    ///
    /// # Errors
    /// It cannot be booted, or not be saved.
    pub fn new(path: &Path, guest: &Guest) -> anyhow::Result<Self> {
        let template = scratch::directory();
        let program = boot(path, guest, &template)?;
        let mut qmp = Qmp::new(program.connect(QMP)?)?;
        qmp.execute("stop", &json!({}))?;
        let begun = Instant::now();
        ignore_shared(&mut qmp)?;
        qmp.execute("migrate", &json!({ "uri": state_of(&template) }))?;
        qmp.until_migrated()?;
        Ok(Self {
            path: path.to_owned(),
            guest: guest.clone(),
            template,
            save_time: begun.elapsed(),
        })
    }
}

impl Vmm for Qemu {
    fn name(&self) -> &'static str {
        "QEMU"
    }

    fn restore(&self) -> anyhow::Result<Ready<'_>> {
        let cid = new_cid();
        let program = Program::start(&self.path, |_, command| {
            let args = machine(&self.template, "off", cid);
            command.args(args).args(["-incoming", "defer"]);
            Ok(())
        })?;
        let mut qmp = Qmp::new(program.connect(QMP)?)?;
        ignore_shared(&mut qmp)?;
        let state = json!({ "uri": state_of(&self.template) });
        qmp.execute("migrate-incoming", &state)?;
        qmp.until_migrated()?;
        qmp.execute("cont", &json!({}))?;
        reply::over_stream(agent(cid)?)?;
        Ok(program.ready())
    }

    fn boot(&self) -> anyhow::Result<Ready<'_>> {
        let memory = scratch::directory();
        let ready = boot(&self.path, &self.guest, &memory)?.ready();
        // The file has no name any more, and goes with the process.
        std::fs::remove_dir_all(memory)?;
        Ok(ready)
    }

    fn save_time(&self) -> Option<Duration> {
        Some(self.save_time)
    }
}

fn boot(path: &Path, guest: &Guest, memory: &Path) -> anyhow::Result<Program> {
    let cid = new_cid();
    let ready = vsock()?;
    bind(ready.as_raw_fd(), &VsockAddr::new(ANY_CID, READY_PORT))?;
    listen(&ready, Backlog::new(1)?)?;
    let program = Program::start(path, |_, command| {
        command.args(machine(memory, "on", cid));
        command.arg("-kernel").arg(guest.kernel());
        command.arg("-initrd").arg(guest.initrd());
        command.arg("-append").arg(Guest::command_line());
        Ok(())
    })?;
    // The agent connects once it is ready.
    program.until_readable(&ready)?;
    drop(accept(&ready)?);
    reply::over_stream(agent(cid)?)?;
    Ok(program)
}

/// The machine that Kata asks for, as small as it gets.
fn machine(memory: &Path, share: &str, cid: u32) -> Vec<String> {
    let size = Guest::MEBIBYTES;
    let file = memory.join("memory");
    let backend = format!(
        "memory-backend-file,id=ram,size={size}M,mem-path={},share={share}",
        file.display()
    );
    let fixed = "-nodefaults -no-user-config -display none -monitor none -serial null -smp 1 -cpu host \
                 -machine q35,accel=kvm,memory-backend=ram";
    let mut args: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
    args.extend([
        "-m".to_owned(),
        format!("{size}M"),
        "-object".to_owned(),
        backend,
        "-device".to_owned(),
        format!("vhost-vsock-pci,guest-cid={cid}"),
        "-qmp".to_owned(),
        format!("unix:{QMP},server=on,wait=off"),
    ]);
    args
}

fn ignore_shared(qmp: &mut Qmp) -> anyhow::Result<()> {
    let capabilities = json!([
        { "capability": "x-ignore-shared", "state": true },
        { "capability": "events", "state": true },
    ]);
    let arguments = json!({ "capabilities": capabilities });
    qmp.execute("migrate-set-capabilities", &arguments)
}

fn state_of(template: &Path) -> String {
    format!("file:{}", template.join("state").display())
}

/// Of this host, where no other program makes guests.
fn new_cid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(100);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A connection to the agent. A clone has its own context id only once its driver has handled the reset; until
/// then it refuses.
fn agent(cid: u32) -> anyhow::Result<UnixStream> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let stream = vsock()?;
        match connect(stream.as_raw_fd(), &VsockAddr::new(cid, AGENT_PORT)) {
            Ok(()) => return Ok(UnixStream::from(stream)),
            Err(Errno::ECONNRESET | Errno::ENODEV | Errno::ETIMEDOUT)
                if Instant::now() < deadline => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn vsock() -> nix::Result<OwnedFd> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
}
