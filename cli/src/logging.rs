//! Log lines on standard error; in a VM process that is `vmm.log`.

use std::io;

use tracing::level_filters::LevelFilter;

/// Log level for `verbosity` uses of `-v`, beginning at `base`.
fn level(base: LevelFilter, verbosity: u8) -> LevelFilter {
    let levels = [
        LevelFilter::WARN,
        LevelFilter::INFO,
        LevelFilter::DEBUG,
        LevelFilter::TRACE,
    ];
    let start = levels.iter().position(|&level| level == base).unwrap_or(0);
    let index = (start + usize::from(verbosity)).min(levels.len() - 1);
    levels.get(index).copied().unwrap_or(base)
}

/// Starts logging of a command: warnings, and more with `-v`. Not for a command that starts VMs:
/// a process has one logger for its life, and theirs is another.
pub fn start_command(verbosity: u8) {
    start(level(LevelFilter::WARN, verbosity));
}

/// Starts logging of a VM process: life-cycle changes, and more with `-v`.
pub fn start_vm_process(verbosity: u8) {
    start(level(LevelFilter::INFO, verbosity));
}

fn start(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(level)
        .with_ansi(false)
        // A log on a full disk is no reason to end a VM, which a failed complaint about it would do.
        .log_internal_errors(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_v_adds_one_level_up_to_the_last() {
        assert_eq!(level(LevelFilter::WARN, 0), LevelFilter::WARN);
        assert_eq!(level(LevelFilter::WARN, 2), LevelFilter::DEBUG);
        assert_eq!(level(LevelFilter::INFO, 1), LevelFilter::DEBUG);
        assert_eq!(level(LevelFilter::WARN, 255), LevelFilter::TRACE);
    }
}
