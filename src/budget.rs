//! How much of the machine a run may take. The limits belong to the process, like its threads.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::error::Fault;

/// Set by the user; 0: not set.
static MEMORY: AtomicU64 = AtomicU64::new(0);

/// Bytes that runs hold at present.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Steps of one run, loops and all, after which it is taken for endless.
const STEPS: u64 = 1 << 27;

/// Without a machine that tells how much it has.
const UNKNOWN_MACHINE: u64 = 8 << 30;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

/// Work that can end early, and whether it is asked to.
static EARLY: AtomicU8 = AtomicU8::new(UNABLE);
const UNABLE: u8 = 0;
const ABLE: u8 = 1;
const ASKED: u8 = 2;

/// While this lives there is something worth keeping: work can be asked to end early with it.
#[derive(Debug)]
pub struct MayEndEarly(());

impl MayEndEarly {
    /// From now on.
    pub fn begin() -> Self {
        EARLY.store(ABLE, Relaxed);
        Self(())
    }
}

impl Drop for MayEndEarly {
    fn drop(&mut self) {
        EARLY.store(UNABLE, Relaxed);
    }
}

/// Asks work to end early with what it has. False if it cannot, or if it was asked before.
pub fn end_early() -> bool {
    EARLY.compare_exchange(ABLE, ASKED, Relaxed, Relaxed).is_ok()
}

/// Is work to end early?
pub fn is_ending() -> bool {
    EARLY.load(Relaxed) == ASKED
}

/// Limits the memory for values of a run, in bytes.
pub fn limit_memory(bytes: u64) {
    MEMORY.store(bytes.max(1), Relaxed);
}

/// The memory for values, in bytes: what was set, or three quarters of what the machine or the control group has.
pub fn memory() -> u64 {
    static MACHINE: OnceLock<u64> = OnceLock::new();
    match MEMORY.load(Relaxed) {
        0 => *MACHINE.get_or_init(machine) / 4 * 3,
        set => set,
    }
}

fn machine() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kilobytes =
        |line: &str| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    let total = read("/proc/meminfo").lines().find_map(kilobytes).map_or(UNKNOWN_MACHINE, |kb| kb << 10);
    let group = read("/sys/fs/cgroup/memory.max").trim().parse::<u64>();
    group.map_or(total, |limit| limit.min(total))
}

/// What is left of the memory.
pub fn room() -> u64 {
    memory().saturating_sub(HELD.load(Relaxed))
}

/// The bytes that one run holds; they are given back when it ends, however it ends.
#[derive(Debug, Default)]
pub struct Holding(u64);

impl Holding {
    /// More is held.
    pub fn take(&mut self, bytes: u64) {
        self.0 += bytes;
        HELD.fetch_add(bytes, Relaxed);
    }

    /// Less is held.
    pub fn give(&mut self, bytes: u64) {
        let bytes = bytes.min(self.0);
        self.0 -= bytes;
        HELD.fetch_sub(bytes, Relaxed);
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Relaxed);
    }
}

/// Refuses what is larger than the room that is left.
pub fn fits(bytes: u64, room: u64) -> Result<(), Fault> {
    if bytes <= room {
        return Ok(());
    }
    let fault = Fault::new(format!("its result has {}, and there is room for {}", size(bytes), size(room)));
    Err(fault.hint("--memory-limit sets how much may be used"))
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        b if b == u64::MAX => "more bytes than can be counted".into(),
        b if b < 10 << 20 => format!("{} kB", b >> 10),
        b => format!("{} MB", b >> 20),
    }
}

/// A run begins on this thread.
pub fn begin() {
    TAKEN.set(0);
}

/// A step of the run begins.
pub fn step() -> Result<(), Fault> {
    let taken = TAKEN.get() + 1;
    TAKEN.set(taken);
    if taken > STEPS {
        return Err(Fault::new(format!("the run has taken {STEPS} steps and does not end")));
    }
    Ok(())
}
