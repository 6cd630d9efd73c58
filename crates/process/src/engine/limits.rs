//! How much a process may have, by its own limits and the machine's.

use super::Engine;
use super::swap::REPLACE;
use crate::error::Error;
use crate::state::Region;
use std::io;

const SPACE: &str = "its address space (RLIMIT_AS)";
const DATA: &str = "its data (RLIMIT_DATA)";
const MAPPINGS: &str = "its mappings (vm.max_map_count)";
const PROMISED: &str = "what the machine promises (vm.overcommit_memory is 2)";

/// A number that the kernel keeps for the whole machine.
fn setting(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/vm/{name}")).ok()?;
    text.trim().parse().ok()
}

fn at_limit(what: &str, limit: &str) -> String {
    format!("{what}: it is at the limit of {limit}, which must be raised first")
}

impl Engine {
    /// A soft limit in bytes, by its name in /proc/PID/limits; `None`: there is none.
    fn soft_limit(&self, name: &str) -> Option<u64> {
        let limits = std::fs::read_to_string(self.process.dir().join("limits")).ok()?;
        let mut values = limits.lines().filter_map(|line| line.strip_prefix(name));
        values.next()?.split_ascii_whitespace().next()?.parse().ok()
    }

    /// How much there is, in bytes, by its name in /proc/PID/status.
    fn used(&self, name: &str) -> u64 {
        let used = crate::process::status_field(&self.process.live(), name);
        let kib = used.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        kib.unwrap_or(0).saturating_mul(1024)
    }

    fn passes(&self, (limit, used): (&str, &str), more: u64) -> bool {
        let limit = self.soft_limit(limit);
        limit.is_some_and(|limit| self.used(used).saturating_add(more) > limit)
    }

    fn has_mappings_for(&self, more: usize) -> bool {
        let most = setting("max_map_count").unwrap_or(65530);
        self.maps.len().saturating_add(more) as u64 <= most
    }

    /// mremap can fail after it has unmapped its destination when the process is at one of its limits: look first.
    pub(super) fn check_limits(&mut self, room: u64, count: usize) -> Result<(), Error> {
        self.refresh_maps()?;
        let pid = self.process.pid;
        let refuse = |limit| Error::RemoteCall {
            pid,
            what: at_limit(REPLACE, limit),
            source: io::Error::from_raw_os_error(libc::ENOMEM),
        };
        // Each page may make three mappings of one.
        if !self.has_mappings_for(16 + 2 * count) {
            return Err(refuse(MAPPINGS));
        }
        if self.passes(("Max address space", "VmSize"), room) {
            return Err(refuse(SPACE));
        }
        Ok(())
    }

    /// What the kernel said when a region was to be mapped, with the limit that is met, where one can be told.
    pub(super) fn why_not_mapped(&self, error: Error, region: &Region) -> Error {
        match error {
            Error::RemoteCall { pid, what, source }
                if source.raw_os_error() == Some(libc::ENOMEM) =>
            {
                let what = match self.limit_met(region) {
                    Some(limit) => at_limit(&what, limit),
                    None => what,
                };
                Error::RemoteCall { pid, what, source }
            }
            other => other,
        }
    }

    fn limit_met(&self, region: &Region) -> Option<&'static str> {
        let writable = region.purpose.protection() & libc::PROT_WRITE != 0;
        let passes = |names| self.passes(names, region.len);
        if passes(("Max address space", "VmSize")) {
            return Some(SPACE);
        }
        // What only we write to is neither data nor promised (mm/mmap.c, is_data_mapping and accountable_mapping).
        if writable && passes(("Max data size", "VmData")) {
            return Some(DATA);
        }
        if !self.has_mappings_for(1) {
            return Some(MAPPINGS);
        }
        (writable && setting("overcommit_memory") == Some(2)).then_some(PROMISED)
    }
}
