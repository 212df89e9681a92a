//! What the end-to-end tests run inside their guests.
//!
//! `init` is started by the kernel in place of the agent; it starts jobs, waits until each of them is
//! ready, and becomes the agent. So a template is frozen while they run. All others are run by
//! `minivmm exec`, or as such a job.

mod clock;
mod disk_verify;
mod exchange;
mod identity;
mod init;
mod memory;
mod random_log;
mod service;
mod ticks;
mod vsock;

use std::process::ExitCode;
use std::str::FromStr;

/// What a command fails with: a message for the one who reads the test's output.
type Error = Box<dyn std::error::Error>;

const USAGE: &str = "usage: guest-tool COMMAND, one of
  init JOB [/ JOB]...             PID 1: start the jobs, then become the agent
  busy                            job: keep every CPU busy
  ticks                           job: count on every CPU, sleeping 10 ms each time
  ticks-watch N                   until every CPU's counter has gone on by N; prints the counters
  random-log                      job: note random numbers as fast as they come
  random-dump                     the notes, 16 bytes each: CLOCK_MONOTONIC in ns, number
  random BYTES                    random bytes in hexadecimal
  cid                             the vsock context id
  clock                           for each line of input: realtime and monotonic in ns
  note-clock FILE                 job: FILE tells the monotonic time in ns
  cross-check ROUNDS              time must not run backwards between CPUs
  on-each-cpu                     run on every CPU in use, one after the other; prints them
  dirty-all                       write all free memory
  use-memory BYTES SEED           write to every page of as much memory, and compare
  fill BYTES SEED                 job: fill memory with a pattern; prints 'ready'
  fill-check BYTES SEED           compare it
  mark SEED ADDRESS...            job: write a pattern to reserved pages of physical memory
  mark-check SEED ADDRESS...      compare it
  disk-verify DEVICE SEED         job: write to a disk, and know what must be on it
  disk-verify-watch N             until it has made N more writes
  disk-verify-check               end it and read all of the disk
  exchange-listen PORT BYTES      take one TCP connection: a pattern both ways at once, compared
  exchange ADDRESS BYTES          its other side; both print the rate
  vsock-listen PORT MODE          job: serve all who connect; MODE is echo, discard,
                                  source:BYTES or sink:BYTES (answers 'ok' or what is wrong)
  vsock-connect PORT MODE         to the host; MODE is echo:BYTES, source:BYTES or sink:BYTES
  vsock-probe PORT                how connecting to the host ends
  vsock-hold PORT FILE            job: read from the host until the end; FILE tells how it ended
  vsock-stream PORT FILE          job: write to the host until it fails; FILE tells how
  note-log LINE                   job: write a line into the kernel's log
  await FILE                      until FILE is there; prints it";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-tool {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<(), Error> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["init", jobs @ ..] => init::run(jobs),
        ["busy"] => ticks::keep_busy(),
        ["ticks"] => ticks::serve(),
        ["ticks-watch", count] => ticks::watch(number(count)?),
        ["random-log"] => random_log::serve(),
        ["random-dump"] => random_log::dump(),
        ["random", bytes] => identity::random(number(bytes)?),
        ["cid"] => identity::cid(),
        ["clock"] => clock::answer(),
        ["note-clock", file] => clock::note(file),
        ["cross-check", rounds] => clock::cross_check(number(rounds)?),
        ["on-each-cpu"] => ticks::run_on_each(),
        ["dirty-all"] => memory::dirty_all(),
        ["use-memory", bytes, seed] => memory::use_up(number(bytes)?, number(seed)?),
        ["fill", bytes, seed] => memory::fill(number(bytes)?, number(seed)?),
        ["fill-check", bytes, seed] => memory::check_filling(number(bytes)?, number(seed)?),
        ["mark", seed, addresses @ ..] => memory::mark(number(seed)?, &numbers(addresses)?),
        ["mark-check", seed, addresses @ ..] => {
            memory::check_marks(number(seed)?, &numbers(addresses)?)
        }
        ["disk-verify", device, seed] => disk_verify::serve(device, number(seed)?),
        ["disk-verify-watch", writes] => disk_verify::watch(number(writes)?),
        ["disk-verify-check"] => disk_verify::check(),
        ["exchange-listen", port, bytes] => exchange::listen(number(port)?, number(bytes)?),
        ["exchange", address, bytes] => exchange::connect(address, number(bytes)?),
        ["vsock-listen", port, mode] => vsock::listen(number(port)?, mode.parse()?),
        ["vsock-connect", port, mode] => vsock::connect(number(port)?, mode.parse()?),
        ["vsock-probe", port] => vsock::probe(number(port)?),
        ["vsock-hold", port, file] => vsock::hold(number(port)?, file),
        ["vsock-stream", port, file] => vsock::stream(number(port)?, file),
        ["note-log", line] => service::note_log(line),
        ["await", file] => service::await_file(file),
        _ => Err(USAGE.into()),
    }
}

/// A decimal number.
fn number<T: FromStr>(word: &str) -> Result<T, Error> {
    word.parse()
        .map_err(|_| format!("{word:?}: expected a number").into())
}

fn numbers(words: &[&str]) -> Result<Vec<u64>, Error> {
    words.iter().map(|word| number(word)).collect()
}
