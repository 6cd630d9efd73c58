//! What is recorded in the target, and the memory for that.

use super::Engine;
use crate::arch::{PAGE, nr};
use crate::error::Error;
use crate::process::Stat;
use crate::registry::{self, Registry};
use crate::remote::Host;
use crate::state::{Controller, Purpose, Region};
use std::path::Path;

impl Engine {
    /// Records the state in the target, in one motion, and that we are at work.
    pub(super) fn commit(&mut self) -> Result<(), Error> {
        let pid = std::process::id() as i32;
        let start_time = Stat::read(Path::new("/proc/self/stat")).map_or(0, |stat| stat.start_time);
        self.commit_as(Some(Controller { pid, start_time }))
    }

    pub(super) fn commit_as(&mut self, controller: Option<Controller>) -> Result<(), Error> {
        self.state.controller = controller;
        self.make_room(0)?;
        let Some(registry) = &mut self.registry else {
            return Ok(());
        };
        registry
            .commit(&self.process.memory, &self.state)
            .map_err(Error::io(format!(
                "recording in process {}",
                self.process.pid
            )))
    }

    /// Sees to it that a record `extra` bytes larger than now fits.
    pub(super) fn make_room(&mut self, extra: u64) -> Result<(), Error> {
        let Some(lacks) = self
            .registry
            .as_ref()
            .and_then(|registry| registry.lacks(&self.state, extra))
        else {
            return Ok(());
        };
        let half = lacks.saturating_mul(2).next_multiple_of(PAGE);
        let region = self.plan_anywhere(half.saturating_mul(2), Purpose::Registry)?;
        // Recorded before it is mapped, in what room there is: without what is to be recorded next.
        let wanted = std::mem::take(&mut self.state);
        let recorded = Registry::find(self.process.pid, self.memory(), &self.maps)?;
        if let (Some((_, mut state)), Some(registry)) = (recorded, &mut self.registry) {
            state.regions.push(region);
            registry
                .commit(&self.process.memory, &state)
                .map_err(Error::io("recording a larger record"))?;
        }
        self.state = wanted;
        self.map(&[region])?;
        self.state.regions.push(Region {
            reachable: true,
            ..region
        });
        let (first, second) = (region.start, region.start + half);
        for place in [first, second] {
            if let Some(registry) = &mut self.registry {
                registry.move_spare(place, half);
                registry
                    .commit(&self.process.memory, &self.state)
                    .map_err(Error::io("recording"))?;
            }
        }
        Ok(())
    }

    /// Creates the record in the target, or takes over the mapping that an interrupted command made for one.
    pub(super) fn create_registry(&mut self) -> Result<(), Error> {
        if self.registry.is_some() {
            return Ok(());
        }
        self.state.instance = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
        let left = self.maps.iter().find(|mapping| {
            registry::is_ours(mapping)
                && mapping.end - mapping.start == registry::INITIAL
                && !mapping.shared
        });
        let left_fd = self.process.open_file_named(registry::MAPPING);
        let start = match left {
            Some(mapping) => Ok(mapping.start),
            None => {
                let mut host = Host::find(&self.process, &self.gadgets, &mut self.tracer)?;
                let name = host.place(b"livegraft\0")?;
                const MFD_CLOEXEC: u64 = 1;
                let fd = match left_fd {
                    Some(fd) => fd,
                    None => host.call(
                        "create a memfd",
                        nr::MEMFD_CREATE,
                        [name, MFD_CLOEXEC, 0, 0, 0, 0],
                    )?,
                };
                let mapped = host
                    .call(
                        "size a memfd",
                        nr::FTRUNCATE,
                        [fd, registry::INITIAL, 0, 0, 0, 0],
                    )
                    .and_then(|_| {
                        let flags = libc::MAP_PRIVATE as u64;
                        let args = [0, registry::INITIAL, libc::PROT_READ as u64, flags, fd, 0];
                        host.call("map a memfd", nr::MMAP, args)
                    });
                host.call("close a memfd", nr::CLOSE, [fd, 0, 0, 0, 0, 0])?;
                mapped
            }
        };
        let record = |start| Region {
            start,
            len: registry::INITIAL,
            purpose: Purpose::Registry,
            reachable: true,
        };
        let start = start.map_err(|error| self.why_not_mapped(error, &record(0)))?;
        if let (Some(fd), Some(_)) = (left_fd, left) {
            self.host()?
                .call("close a memfd", nr::CLOSE, [fd, 0, 0, 0, 0, 0])?;
        }
        let memory_error = Error::io("recording");
        self.state.regions.push(record(start));
        let registry =
            Registry::create(&self.process.memory, start, &self.state).map_err(memory_error)?;
        self.registry = Some(registry);
        Ok(())
    }
}
