//! Real security fixes of Debian 12 as patches of the programs that lack them; for `make cve` and docs/cve.md.
//!
//! `tests/cve/pairs.tsv` lists fixes that Debian's source packages carry as files in debian/patches. The original is
//! Debian's tree without that one fix. It is built, `livegraft build` makes a patch of the fix, and the original runs
//! under load while the patch is loaded, used and unloaded.

mod clients;
mod dnsmasq;
mod entered;
mod expat;
mod h2;
mod haproxy;
mod host;
mod http;
mod libevent;
mod libxml2;
mod memcached;
mod net;
mod nghttp2;
mod nginx;
mod process;
mod redis;
mod report;
mod row;
mod table;
mod tree;

pub use clients::Clients;
pub use report::{Outcome, Report};
pub use row::run;
pub use table::table;
pub use tree::Places;

use crate::plan::root;
use std::path::Path;

/// A fix.
#[derive(Debug, Clone)]
pub struct Row {
    /// Debian's source package.
    pub package: String,
    /// Its version, in which the fix is.
    pub version: String,
    /// Its file in debian/patches.
    pub patch: String,
    /// What it changes: B bodies only, F functions come or go, M a macro or enum, D new data, G an initial value,
    /// S a struct.
    pub kind: String,
}

impl Row {
    /// A name for files: the patch's, without what a path may not hold.
    pub fn name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name = self.patch.trim_end_matches(".patch");
        name.chars().map(plain).collect()
    }
}

/// All fixes of the list.
///
/// # Errors
/// The list can't be read.
pub fn rows() -> Result<Vec<Row>, String> {
    let path = root().join("tests/cve/pairs.tsv");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut rows = Vec::new();
    for line in text.lines().skip(1) {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut field = || fields.next().ok_or_else(|| format!("too short: {line}"));
        rows.push(Row {
            package: field()?,
            version: field()?,
            patch: field()?,
            kind: field()?,
        });
    }
    Ok(rows)
}

/// What must come of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It loads.
    Loads,
    /// The fix changes no code of the program.
    NoCode,
    /// It is refused with a message that has all of these words.
    Refused(&'static [&'static str]),
}

/// What an input did to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// What the fix is against, in a few words.
    Misbehaves(String),
    /// What is right, in a few words.
    Behaves(String),
}

/// What is known of a row beside the fix.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The file that runs, in the built tree.
    pub program: &'static str,
    /// What must come of it.
    pub expected: Expected,
    /// Whether [`Service::hole`] shows what the fix is against.
    pub shows_hole: bool,
}

/// How a source package is built and used.
pub trait Package: Sync {
    /// Debian's source package.
    fn name(&self) -> &'static str;
    /// Shell commands that prepare an unpacked tree, once; they run in it.
    fn configure(&self) -> &'static str;
    /// The build command for `sh -c`, in the tree.
    fn make(&self) -> &'static str;
    /// What `load` and `unload` are told beside the patch and the process.
    fn options(&self) -> &'static [&'static str] {
        &[]
    }
    /// What is known of a row.
    fn case(&self, row: &Row) -> Option<Case>;
    /// What a user must know before the row's patch is loaded, beyond what livegraft says.
    fn caveat(&self, _: &Row) -> Option<&'static str> {
        None
    }
    /// Starts the original, which was built in `tree`, with its clients. What it has on disk goes to `dir`.
    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String>;
}

/// An original program that runs, with clients that use it all the time. Ended when dropped.
pub trait Service {
    /// The processes to be patched.
    fn pids(&self) -> Vec<i32>;
    /// Uses what the fix changes, and insists on the answers that both versions give.
    fn exercise(&mut self) -> Result<(), String>;
    /// Sends what the fix is against.
    fn hole(&mut self) -> Result<Seen, String>;
    /// Its clients.
    fn clients(&self) -> &Clients;
}

/// The packages of the list.
pub const PACKAGES: &[&dyn Package] = &[
    &dnsmasq::Dnsmasq,
    &expat::Expat,
    &haproxy::Haproxy,
    &libevent::Libevent,
    &libxml2::Libxml2,
    &memcached::Memcached,
    &nghttp2::Nghttp2,
    &nginx::Nginx,
    &redis::Redis,
];

/// The package of that name.
pub fn package(name: &str) -> Option<&'static dyn Package> {
    PACKAGES
        .iter()
        .copied()
        .find(|package| package.name() == name)
}

/// A number that was not given before in this process.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
