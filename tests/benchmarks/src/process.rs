//! What a running process costs, as Linux tells it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Linux' `USER_HZ`, the same on every architecture we know.
const TICKS_PER_SECOND: f64 = 100.0;

/// User and system time so far.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold spaces; utime and stime are the 14th and 15th field.
    let (_, fields) = stat
        .rsplit_once(") ")
        .context("no process name in its stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// A line of its status that is in KiB, such as `VmRSS`.
pub fn memory_kib(pid: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let lines: BTreeMap<_, _> = status.lines().filter_map(|l| l.split_once(':')).collect();
    let value = lines.get(key).with_context(|| format!("no {key}"))?;
    let kib = value.trim().strip_suffix(" kB");
    Ok(kib
        .with_context(|| format!("{key} is not in kB"))?
        .parse()?)
}
