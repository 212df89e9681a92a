//! The call that makes a clone a machine of its own.

use proto::guest::{AdoptRequest, AdoptResponse, HookResult};

use crate::VERSION;
use crate::error::Refusal;
use crate::machine::hooks::{self, Ran};
use crate::machine::{Machine, clock, host_names, hotplug, machine_id, memory, network};

const GENERATION_ID_BYTES: usize = 16;

/// Makes a clone unique: its random numbers first, so that nothing is made from the template's. Its
/// own programs have a hand in it last. Other processes run from then on, unless one of those failed.
pub fn adopt(
    machine: Result<&mut Machine, Refusal>,
    request: &AdoptRequest,
) -> Result<AdoptResponse, Refusal> {
    check(request)?;
    let machine = machine?;
    machine
        .entropy
        .reseed(&[&request.entropy[..], &request.generation_id[..]].concat())?;
    machine.held.thaw_file_systems();
    if !request.template.is_empty() {
        machine.discard_stale_entropy()?;
    }
    let clock_is_exact = set_clock(request)?;
    if !request.hostname.is_empty() {
        host_names::set(&request.hostname)?;
    }
    if !request.machine_id.is_empty() {
        machine_id::set(&request.machine_id)?;
    }
    let interface = match request.network.as_ref() {
        Some(network) => network::Setup::of(network)?.apply()?,
        None => String::new(),
    };
    let hooks = if request.template.is_empty() {
        Vec::new()
    } else {
        machine.boot_id.renew()?;
        run_hooks(machine, request)
    };
    if hooks.iter().all(|hook| hook.failure.is_none()) {
        machine.held.release()?;
    }
    Ok(AdoptResponse {
        online_cpus: hotplug::online_cpu_count()?,
        memory_bytes: memory::usage().total_bytes,
        boot_id: machine.boot_id.text().to_owned(),
        cid: machine.vsock.local_cid().map_or(0, u64::from),
        agent_version: VERSION.to_owned(),
        entropy_credited: true,
        interface,
        clock_is_exact,
        hooks: hooks.into_iter().map(result_of).collect(),
        ..Default::default()
    })
}

/// Whether the time that the request was under way is made up for.
fn set_clock(request: &AdoptRequest) -> Result<bool, Refusal> {
    if request.realtime_ns == 0 {
        return Ok(false);
    }
    let elapsed = clock::since_counter(request.tsc, request.tsc_khz);
    let elapsed_ns = elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_nanos()).unwrap_or(0));
    clock::set_realtime(request.realtime_ns.saturating_add(elapsed_ns))?;
    Ok(elapsed.is_some())
}

fn run_hooks(machine: &Machine, request: &AdoptRequest) -> Vec<Ran> {
    let generation: String = request
        .generation_id
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hooks::run_all(&[
        ("MINIVMM_ID", &request.id),
        ("MINIVMM_TEMPLATE", &request.template),
        ("MINIVMM_HOSTNAME", &request.hostname),
        ("MINIVMM_GENERATION", &generation),
        ("MINIVMM_MACHINE_ID", &request.machine_id),
        ("MINIVMM_BOOT_ID", machine.boot_id.text()),
        ("MINIVMM_CID", &request.cid.to_string()),
    ])
}

fn result_of(hook: Ran) -> HookResult {
    HookResult {
        name: hook.name,
        failure: hook.failure.unwrap_or_default(),
        output: hook.output,
        took_ms: u32::try_from(hook.took.as_millis()).unwrap_or(u32::MAX),
        ..Default::default()
    }
}

/// Refuses a request as a whole before any part of it is carried out.
fn check(request: &AdoptRequest) -> Result<(), Refusal> {
    let entropy = request.entropy.len();
    if entropy < proto::MIN_ENTROPY_BYTES {
        let least = proto::MIN_ENTROPY_BYTES;
        return Err(Refusal::invalid(format!(
            "Adopt with {entropy} bytes of entropy, expected at least {least}"
        )));
    }
    let generation_id = request.generation_id.len();
    if generation_id != 0 && generation_id != GENERATION_ID_BYTES {
        return Err(Refusal::invalid(format!(
            "Generation id of {generation_id} bytes, expected {GENERATION_ID_BYTES}"
        )));
    }
    if request.realtime_ns < 0 {
        let text = format!("Time of {} ns lies before the epoch", request.realtime_ns);
        return Err(Refusal::invalid(text));
    }
    if let Some(network) = request.network.as_ref() {
        network::Setup::of(network)?;
    }
    host_names::check(&request.hostname)?;
    if !request.machine_id.is_empty() {
        machine_id::check(&request.machine_id)?;
    }
    Ok(())
}
