//! One process under the hands of one command: what is recorded in it, and the motions that change it.

mod check;
mod coverage;
mod dead;
mod door;
mod edits;
mod exits;
mod frames;
mod free;
mod function;
mod handed;
mod indirect;
mod inspect;
mod limits;
mod load;
mod operations;
mod padding;
mod pinned;
mod plan;
mod pool;
mod pun;
mod reach;
mod record;
mod referrer;
mod rendezvous;
mod rewrite;
mod safe;
mod stacks;
mod swap;
mod text;
mod together;
mod trampolines;
mod transition;

pub use check::{Check, CheckedFunction, CheckedTask};
pub use coverage::Covered;
pub use exits::{CheckedExit, Leads};
pub use frames::Registering;
pub use free::{FreeReport, FreedPatch, Kept, KeptPatch};
pub use inspect::{EntryView, MappingView, Overview, PatchView, TaskView, TransitionView};
pub use operations::{Ended, OnTimeout, Options, Progress, Report, Reported};
pub use referrer::Reference;
pub use transition::Blocked;

use crate::arch::{self, SLOT_BYTES, SWITCH_HEADER, nr};
use crate::boost;
use crate::error::Error;
use crate::memory::Memory;
use crate::object::{self, Mapping};
use crate::process::Process;
use crate::registry::{self, Registry};
use crate::remote::{Gadgets, Host};
use crate::state::{Region, State};
use crate::sys;
use crate::tracer::{Stopping, Tracer};
use crate::unwind::Unwinder;
use livegraft_model::{Slot, Standing, UniverseId, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

/// How many remote calls the host makes in one stop, of so many that it has to make: few, so that it does not stand still
/// for long; more where all the stops together would take longer than the load may.
fn calls_per_stop(all: usize) -> usize {
    if all > 32 { 8 } else { 2 }
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    maps: Vec<Mapping>,
    registry: Option<Registry>,
    state: State,
    tracer: Tracer,
    gadgets: Gadgets,
    pool: pool::Cursor,
    /// The slots whose objects are not there any more.
    gone: BTreeSet<Slot>,
    /// What is needed to unwind stacks, once it is needed.
    unwinder: Option<Unwinder>,
    /// What makes stacks that are no task's, once that was looked for.
    switching: Option<Option<together::Switching>>,
    /// Room for what a search of all memory reads.
    snapshot: crate::snapshot::Snapshot,
    /// All tasks may be stopped at once where that is so.
    together: bool,
    /// Begins of the regions that an unwinder of the program was told of: it may look there at any time.
    told: Vec<u64>,
    /// What resolvers of IFUNCs, by their addresses, have returned when a task called them for us.
    resolved: BTreeMap<u64, u64>,
    _lock: Option<File>,
}

impl Engine {
    /// Opens a process to look at it.
    ///
    /// # Errors
    /// See [`Process::open`]; [`Error::Registry`].
    pub fn inspect(pid: i32) -> Result<Engine, Error> {
        Engine::open(pid, None)
    }

    /// Opens a process to look at it closely, while nobody changes it.
    ///
    /// # Errors
    /// As [`Engine::change`], but for what an interrupted command left.
    pub fn examine_closely(pid: i32) -> Result<Engine, Error> {
        let engine = Engine::open(pid, Some(Engine::lock(pid)?))?;
        match engine.process.tracer() {
            Some(tracer) => Err(traced(pid, tracer)),
            None => Ok(engine),
        }
    }

    /// Opens a process to change it, and clears away what an interrupted command left.
    ///
    /// # Errors
    /// As [`Engine::inspect`]; [`Error::Locked`], [`Error::Traced`], [`Error::ThirtyTwoBit`].
    pub fn change(pid: i32) -> Result<Engine, Error> {
        let lock = Engine::lock(pid)?;
        let crowded = boost::adapt_priority();
        let mut engine = Engine::open(pid, Some(lock))?;
        if let Some(tracer) = engine.process.tracer() {
            return Err(traced(pid, tracer));
        }
        if crowded {
            engine.tracer.expect_crowds();
        }
        engine.recover()?;
        Ok(engine)
    }

    fn lock(pid: i32) -> Result<File, Error> {
        // Opened first: a process that does not exist is not locked.
        Process::open(pid)?;
        let lock = File::open(Path::new("/proc").join(pid.to_string()))
            .map_err(|_| Error::NoProcess(pid))?;
        if !sys::try_lock(&lock) {
            let other = Engine::inspect(pid).ok();
            let other = other.and_then(|other| other.state.controller);
            return Err(Error::Locked {
                pid,
                other: other.map(|controller| controller.pid),
            });
        }
        Ok(lock)
    }

    fn open(pid: i32, lock: Option<File>) -> Result<Engine, Error> {
        sys::block_sigchld();
        let process = Process::open(pid)?;
        let maps = object::read_mappings(&process.live()).map_err(|_| Error::Exited(pid))?;
        let found = Registry::find(pid, &process.memory, &maps)?;
        let (registry, state) = found.map_or_else(
            || (None, State::default()),
            |(registry, state)| (Some(registry), state),
        );
        let gadgets = Gadgets::find(&process, &maps).unwrap_or_default();
        let mut engine = Engine {
            process,
            maps,
            registry,
            state,
            tracer: Tracer::default(),
            gadgets,
            pool: pool::Cursor::default(),
            gone: BTreeSet::new(),
            unwinder: None,
            switching: None,
            snapshot: crate::snapshot::Snapshot::default(),
            together: true,
            told: Vec::new(),
            resolved: BTreeMap::new(),
            _lock: lock,
        };
        engine.refresh_gone();
        Ok(engine)
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// What is recorded in it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether livegraft has ever left something in it.
    pub fn is_known(&self) -> bool {
        self.registry.is_some()
    }

    fn memory(&self) -> &Memory {
        &self.process.memory
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.memory()
            .write(address, bytes)
            .map_err(Error::io(format!(
                "writing to process {} at {address:#x}",
                self.process.pid
            )))
    }

    /// Whether the memory that we opened is still somebody's: neither has the process ended nor executed another
    /// program.
    fn is_alive(&self) -> bool {
        self.memory()
            .read_some(self.gadgets.syscall(), &mut [0])
            .is_ok()
    }

    fn refresh_maps(&mut self) -> Result<(), Error> {
        self.maps = object::read_mappings(&self.process.live())
            .map_err(|_| Error::Exited(self.process.pid))?;
        Ok(())
    }

    /// A task that makes calls for us, until it is dropped.
    fn host(&mut self) -> Result<Host<'_>, Error> {
        Host::find(&self.process, &self.gadgets, &mut self.tracer)
    }

    /// Maps regions that are recorded as planned.
    fn map(&mut self, regions: &[Region]) -> Result<(), Error> {
        for batch in regions.chunks(calls_per_stop(regions.len())) {
            let mut host = self.host()?;
            for region in batch {
                if let Err(error) = map_one(&mut host, region) {
                    drop(host);
                    return Err(self.why_not_mapped(error, region));
                }
            }
        }
        Ok(())
    }

    /// Unmaps regions that no task can have reached, if what is there is what we would have mapped.
    fn unmap(&mut self, regions: &[Region]) -> Result<(), Error> {
        self.refresh_maps()?;
        let there: Vec<Region> = regions
            .iter()
            .copied()
            .filter(|region| self.is_mapped(region))
            .collect();
        for batch in there.chunks(calls_per_stop(there.len())) {
            let mut host = self.host()?;
            for region in batch {
                host.call(
                    "unmap memory",
                    nr::MUNMAP,
                    [region.start, region.len, 0, 0, 0, 0],
                )?;
            }
        }
        Ok(())
    }

    fn is_mapped(&self, region: &Region) -> bool {
        let protection = region.purpose.protection();
        let bit = |flag: i32| protection & flag != 0;
        // Neighbours of ours with the same protection become one mapping.
        let all_ours = |mapping: &Mapping| {
            let mut at = mapping.start;
            while let Some(ours) = self.state.region_at(at) {
                at = ours.end();
                if at >= mapping.end {
                    return at == mapping.end;
                }
            }
            false
        };
        self.maps.iter().any(|mapping| {
            mapping.start <= region.start
                && mapping.end >= region.end()
                && all_ours(mapping)
                && !mapping.shared
                && (mapping.inode == 0 || registry::is_ours(mapping))
                && mapping.read == bit(libc::PROT_READ)
                && mapping.write == bit(libc::PROT_WRITE)
                && mapping.exec == bit(libc::PROT_EXEC)
        })
    }

    /// Clears away what an interrupted command left: regions that no task can have reached, and entries whose bytes
    /// are not what the record says they should be.
    fn recover(&mut self) -> Result<(), Error> {
        if self.registry.is_none() {
            return Ok(());
        }
        if self.unmap_unreachable()? {
            self.commit()?;
            self.refresh_maps()?;
        }
        self.apply_edits(false)
    }

    /// Unmaps what no task can have reached, or can reach any more. Says whether there was anything.
    fn unmap_unreachable(&mut self) -> Result<bool, Error> {
        let left = self.state.regions.iter().filter(|region| !region.reachable);
        let left: Vec<Region> = left.copied().collect();
        self.unmap(&left)?;
        self.state.regions.retain(|region| region.reachable);
        Ok(!left.is_empty())
    }

    /// The gs base that stands for a universe.
    fn gs_of(&self, universe: UniverseId) -> Option<u64> {
        if universe == UniverseId::ORIGINAL {
            return Some(0);
        }
        let (_, table) = self.state.tables.iter().find(|(id, _)| *id == universe)?;
        table.checked_sub(self.state.low)
    }

    /// Which universe a gs base stands for; `None`: none of ours.
    fn standing(&self, gs_base: u64) -> Option<Standing> {
        if gs_base == 0 {
            return Some(Standing::In(UniverseId::ORIGINAL));
        }
        let table = gs_base
            .checked_add(self.state.low)
            .filter(|_| self.state.low != 0)?;
        if let Some((id, _)) = self
            .state
            .tables
            .iter()
            .find(|(_, address)| *address == table)
        {
            return Some(Standing::In(*id));
        }
        self.waiting_at(table)
    }

    /// The address of a version's code.
    fn version_address(&self, slot: Slot, version: Version) -> Option<u64> {
        match version {
            Version::Original => Some(self.state.entry(slot)?.continuation),
            Version::Patched(patch) => {
                let image = self.state.image(patch)?;
                image
                    .functions
                    .iter()
                    .find(|function| function.slot == slot)
                    .map(|f| f.entry)
            }
        }
    }

    /// The slots of a universe's table: each leads to its version.
    fn slots_of(&self, universe: UniverseId) -> Result<Vec<(u64, u64)>, Error> {
        let damaged = || Error::Registry {
            pid: self.process.pid,
            why: "it names code that it does not record".to_owned(),
        };
        let universe = self.state.model.universe(universe).ok_or_else(damaged)?;
        (0..self.state.entries.len())
            .map(|index| {
                let slot = Slot(index as u32);
                let address = self
                    .version_address(slot, universe.version(slot))
                    .ok_or_else(damaged)?;
                Ok((address, address))
            })
            .collect()
    }

    /// Writes the tables of all live universes. What a slot already said, it says again.
    fn write_tables(&self) -> Result<(), Error> {
        let live: Vec<UniverseId> = self.state.model.universes().map(|(id, _)| id).collect();
        for universe in live {
            let Some(address) = (match universe {
                UniverseId::ORIGINAL => Some(self.state.low),
                _ => self
                    .state
                    .tables
                    .iter()
                    .find(|(id, _)| *id == universe)
                    .map(|(_, at)| *at),
            }) else {
                continue;
            };
            let slots = self.slots_of(universe)?;
            if slots.len() as u64 > self.state.room_at(address) / SLOT_BYTES {
                return Err(Error::TooManyFunctions(self.process.pid));
            }
            self.write(address, &arch::table(&slots))?;
        }
        Ok(())
    }

    /// Looks at every task once, changing nothing: each must be one that the engine can serve. Says whether it is certain
    /// that none is in a private table.
    fn survey(&mut self) -> Result<bool, Error> {
        let pid = self.process.pid;
        let listing = self.process.tasks()?;
        let mut none_waits = listing.complete;
        for task in listing.tasks {
            for attempt in 0.. {
                match self.tracer.stop(task, 0) {
                    Stopping::Gone => break,
                    Stopping::Late => {
                        none_waits = false;
                        break;
                    }
                    Stopping::Denied(_) if !self.is_alive() => return Err(Error::Exited(pid)),
                    Stopping::Denied(0) if attempt > 3 => return Err(Error::NoPermission(pid)),
                    Stopping::Denied(tracer) if tracer != 0 && attempt > 3 => {
                        return Err(traced(task.tid, tracer));
                    }
                    Stopping::Denied(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
                    Stopping::Stopped(stopped) => {
                        let regs = stopped.regs;
                        drop(stopped);
                        if regs.rip == 0 && regs.rsp == 0 {
                            break; // an io_uring worker
                        }
                        if !arch::is_64_bit(&regs) {
                            return Err(Error::ThirtyTwoBit(pid));
                        }
                        let value = regs.gs_base;
                        let standing = self.standing(value).ok_or(Error::GsInUse {
                            tid: task.tid,
                            value,
                        })?;
                        none_waits &= matches!(standing, Standing::In(_));
                        break;
                    }
                }
            }
        }
        Ok(none_waits)
    }
}

fn traced(tid: i32, tracer: i32) -> Error {
    let name = std::fs::read_to_string(format!("/proc/{tracer}/comm")).unwrap_or_default();
    Error::Traced {
        tid,
        tracer,
        name: name.trim_end().to_owned(),
    }
}

fn map_one(host: &mut Host<'_>, region: &Region) -> Result<(), Error> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let protection = region.purpose.protection() as u64;
    let args = [
        region.start,
        region.len,
        protection,
        flags as u64,
        u64::MAX,
        0,
    ];
    let what = format!(
        "map memory at {:#x} ({})",
        region.start,
        region.purpose.describe()
    );
    let got = host.call(&what, nr::MMAP, args)?;
    if got != region.start {
        // A kernel that does not know MAP_FIXED_NOREPLACE took it for a hint.
        host.call("unmap memory", nr::MUNMAP, [got, region.len, 0, 0, 0, 0])?;
        return Err(Error::RemoteCall {
            pid: 0,
            what,
            source: std::io::Error::from_raw_os_error(libc::EEXIST),
        });
    }
    Ok(())
}

/// Bytes of a table with room for so many slots, its header included.
fn table_bytes(slots: u64) -> u64 {
    slots
        .saturating_mul(SLOT_BYTES)
        .saturating_add(SWITCH_HEADER)
}
