//! What the kernel says of this process; a file that cannot be read is a gap, not an error.

use std::fs;

/// Ticks per second of `/proc/self/stat`: `USER_HZ`, 100 on every Linux there is.
const TICKS_PER_SECOND: f64 = 100.0;
/// Positions after the command's closing parenthesis: state is 0, so utime (14th field) is 11, stime 12,
/// the number of threads 17.
const UTIME: usize = 11;
const STIME: usize = 12;
const THREADS: usize = 17;

pub(super) fn gather(put: &mut impl FnMut(&'static str, &[(&'static str, &str)], f64)) {
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (key, name) in [
            ("VmRSS:", "process_resident_memory_bytes"),
            ("VmHWM:", "process_resident_memory_max_bytes"),
        ] {
            if let Some(kib) = status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .and_then(number)
            {
                put(name, &[], kib * 1024.0);
            }
        }
    }
    if let Ok(stat) = fs::read_to_string("/proc/self/stat") {
        // The command itself may hold blanks and parentheses.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let field = |index: usize| fields.get(index).and_then(|text| number(text));
        if let (Some(user), Some(system)) = (field(UTIME), field(STIME)) {
            put(
                "process_cpu_seconds",
                &[],
                (user + system) / TICKS_PER_SECOND,
            );
        }
        if let Some(threads) = field(THREADS) {
            put("process_threads", &[], threads);
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        put("process_open_fds", &[], super::size(entries.count()));
    }
}

fn number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}
