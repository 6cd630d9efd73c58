//! The two builds.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use walkdir::WalkDir;

use super::again::{parallel, repeat};
use super::arguments::{Again, Language};
use super::error::{Error, full};
use super::programs::{Program, programs};
use super::record::{Record, Recorder};
use super::site::{Entered, Job, Site, Way};
use super::store::{BOUNDS, Store, clean, copy, key, prune, remove, work};
use super::units::{Unit, absolute, line, units};
use super::{Phase, Rebuild, Request, Told, diff, joined};

/// One run of [`super::capture`].
pub(super) struct Session<'a> {
    pub(super) request: &'a Request,
    pub(super) site: Site,
    pub(super) store: Store,
    pub(super) told: &'a Told<'a>,
    pub(super) interrupt: &'a AtomicBool,
    /// What the diff changes, relative to the source.
    pub(super) files: Vec<PathBuf>,
}

/// What one build has compiled, and where its tree is.
pub(super) struct Built {
    pub(super) tree: PathBuf,
    pub(super) record: Record,
    pub(super) units: Vec<Unit>,
    /// Copies of what the build has removed.
    pub(super) kept: PathBuf,
}

impl Built {
    /// Where the object of a unit is that the build has left nowhere: it was a temporary file, or a crate's are several.
    pub(super) fn remade(&self, unit: &Unit) -> PathBuf {
        self.kept.join(format!("{}-{}.o", unit.call, unit.at))
    }
}

impl<'a> Session<'a> {
    pub(super) fn new(
        request: &'a Request,
        interrupt: &'a AtomicBool,
        told: &'a Told<'a>,
    ) -> Result<Self, Error> {
        if request.command.is_empty() {
            return Err(Error::NoCommand);
        }
        let named: Vec<PathBuf> = std::iter::once(&request.source)
            .chain(&request.build_dirs)
            .cloned()
            .collect();
        // A diff that does not fit is no reason to build anything.
        let mut site = Site::new(Way::Plain, named.clone(), PathBuf::new())?;
        let files = diff::check(&request.diff, &site.areas()[0], &request.source)?;
        let work = work(request.work.as_deref())?;
        for (number, area) in site.areas().iter().enumerate() {
            let others = site
                .areas()
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != number);
            let inner = others
                .map(|(_, other)| other)
                .chain([&work])
                .find(|other| other.starts_with(area));
            // A directory for the build within the source is copied with it.
            if let Some(inner) = inner {
                return Err(Error::Nested {
                    inner: inner.clone(),
                    outer: area.clone(),
                });
            }
        }
        clean(&work)?;
        let way = if request.plain {
            Way::Plain
        } else {
            Site::way(&work, interrupt)?
        };
        let key = key(site.areas(), &format!("{way:?}"), &request.command)?;
        let store = Store::open(&work, &key)?;
        prune(&work, &BOUNDS)?;
        site = Site::new(way, named, store.path("here"))?;
        for name in ["tmp", "objects"] {
            fs::create_dir_all(store.path(name)).map_err(Error::io(store.path(name)))?;
        }
        Ok(Self {
            request,
            site,
            store,
            told,
            interrupt,
            files,
        })
    }

    /// The original build, made now or kept from another run.
    pub(super) fn original(&self) -> Result<(Built, bool), Error> {
        let tree = self.store.path("original");
        if let Some(record) = self.store.record().filter(|_| tree.is_dir()) {
            self.told.tell(Phase::Reuse);
            return Ok((self.built(tree, record), true));
        }
        self.store.forget()?;
        for name in ["tmp", "objects"] {
            fs::create_dir_all(self.store.path(name)).map_err(Error::io(self.store.path(name)))?;
        }
        self.told.tell(Phase::Copy);
        self.fetch(&tree)?;
        let record = self
            .build(&tree, "original", &self.request.command)
            .map_err(|failed| failed.error)?;
        let built = self.built(tree, record);
        if built.units.is_empty() {
            return Err(Error::NoCalls);
        }
        let outside = |object: &&PathBuf| self.site.within(object).is_none() && object.exists();
        if let Some(object) = built
            .units
            .iter()
            .filter_map(|unit| unit.object.as_ref())
            .find(outside)
        {
            return Err(Error::Outside(object.clone()));
        }
        self.remake(&built)?;
        self.store.save(&built.record)?;
        Ok((built, false))
    }

    /// The patched build: as far as the build system can, only of what differs.
    pub(super) fn patched(&self, original: &Built) -> Result<Built, Error> {
        let tree = self.store.path("patched");
        let again = match &self.request.rebuild {
            Rebuild::Same => Some(&self.request.command),
            Rebuild::By(command) => Some(command),
            Rebuild::Afresh => None,
        };
        let again = again.filter(|_| self.files.iter().all(|file| is_source(file)));
        let record = match again {
            Some(command) if !self.is_copied(&original.tree)? => {
                self.fetch_built(original, &tree)?;
                self.apply(&tree)?;
                match self.build(&tree, "patched", command) {
                    // Not every command can be given twice: `mkdir build`. If it was the compiler that did not like the
                    // patched source, another try would only take time.
                    Err(failed) if failed.retry(original) => self.build_afresh(&tree),
                    other => other,
                }
            }
            _ => self.build_afresh(&tree),
        };
        let record = record.map_err(|failed| failed.error)?;
        let built = self.built(tree, record);
        self.join(&built)?;
        Ok(built)
    }

    fn build_afresh(&self, tree: &Path) -> Result<Record, Box<Failed>> {
        remove(tree)?;
        remove(&self.store.path(kept(tree)))?;
        self.fetch(tree)?;
        self.apply(tree)?;
        self.build(tree, "patched", &self.request.command)
    }

    /// Has the original build made a copy of a file that the diff changes? Whether another build renews it is not known.
    fn is_copied(&self, tree: &Path) -> Result<bool, Error> {
        let (source, built) = (&self.site.areas()[0], tree.join("0"));
        let mut changed: HashMap<u64, Vec<PathBuf>> = HashMap::new();
        for file in &self.files {
            if let Ok(metadata) = fs::metadata(source.join(file)) {
                let file = source.join(file);
                changed.entry(metadata.len()).or_default().push(file);
            }
        }
        for area in 0..self.site.areas().len() {
            let top = tree.join(area.to_string());
            for entry in WalkDir::new(&top).into_iter().flatten() {
                let Ok(metadata) = entry.metadata() else {
                    continue;
                };
                let Some(files) = changed.get(&metadata.len()).filter(|_| metadata.is_file())
                else {
                    continue;
                };
                // What the user's source has is no copy of the build's.
                let own = entry.path().strip_prefix(&built);
                if own.is_ok_and(|path| source.join(path).exists()) {
                    continue;
                }
                let read = |path: &Path| fs::read(path).map_err(Error::io(path));
                let text = read(entry.path())?;
                for file in files {
                    if read(file)? == text {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    fn apply(&self, tree: &Path) -> Result<(), Error> {
        self.told.tell(Phase::Apply);
        diff::apply(&self.request.diff, &tree.join("0"), &self.request.source)
    }

    /// Copies of the original build's directories.
    fn fetch_built(&self, original: &Built, tree: &Path) -> Result<(), Error> {
        for area in 0..self.site.areas().len() {
            let name = area.to_string();
            let (from, to) = (original.tree.join(&name), tree.join(&name));
            copy(&from, &to, &self.store.path("log"), self.interrupt)?;
        }
        Ok(())
    }

    /// Copies of the user's directories.
    fn fetch(&self, tree: &Path) -> Result<(), Error> {
        for (number, area) in self.site.areas().iter().enumerate() {
            copy(
                area,
                &tree.join(number.to_string()),
                &self.store.path("log"),
                self.interrupt,
            )?;
        }
        Ok(())
    }

    fn built(&self, tree: PathBuf, record: Record) -> Built {
        let exists = |path: &Path| self.site.host(&tree, path).exists();
        let mut units = units(&record, &exists);
        // What cmake tries out are files of its own, in directories that it removes.
        units.retain(|unit| {
            let there = exists(&record.calls[unit.call].directory)
                && unit.object.as_deref().is_none_or(exists);
            there || self.site.within(&unit.source).is_some()
        });
        let kept = self.store.path(kept(&tree));
        Built {
            tree,
            record,
            units,
            kept,
        }
    }

    /// Runs the user's command in a tree, or another one in its place.
    fn build(
        &self,
        tree: &Path,
        which: &'static str,
        command: &[OsString],
    ) -> Result<Record, Box<Failed>> {
        let log = self.store.path("log");
        let _ = fs::remove_file(&log);
        let mut progress = |calls| {
            self.told.tell(match which {
                "original" => Phase::BuildOriginal { calls },
                _ => Phase::BuildPatched { calls },
            });
        };
        progress(0);
        let mut recorder = Recorder::new(
            self.store.path(kept(tree)),
            which == "original",
            &mut progress,
        );
        let job = Job {
            directory: self.site.seen(0),
            argv: self.site.translated(command),
            environment: None,
            // What compilers leave there when they are killed goes with the rest.
            settings: vec![("TMPDIR", self.store.path("tmp").into())],
            log: log.clone(),
        };
        let status = self
            .site
            .enter(tree)?
            .run(&job, &mut recorder, self.interrupt)?;
        let record = recorder.finish();
        if status.success() {
            return Ok(record);
        }
        let said = fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        full(&log, &said)?;
        let tail: Vec<&str> = said.lines().rev().take(12).collect();
        let message = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
        let kept = self.store.directory.with_extension("failed");
        let _ = fs::rename(&log, &kept);
        let call = (record.calls.iter().rev())
            .find(|call| call.exit != Some(0) && !line(&call.arguments).contains("conftest"));
        Err(Box::new(Failed {
            error: Error::Build {
                which,
                status: status.to_string(),
                call: call.map(|call| line(&call.arguments)),
                log: kept,
                message,
            },
            record: Some(record),
        }))
    }

    /// Makes the objects that were temporary files of calls that also link, and those of crates.
    fn remake(&self, original: &Built) -> Result<(), Error> {
        self.join(original)?;
        let missing: Vec<&Unit> = original
            .units
            .iter()
            .filter(|unit| unit.object.is_none() && unit.language != Language::Rust)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        fs::create_dir_all(&original.kept).map_err(Error::io(&original.kept))?;
        let entered = self.site.enter(&original.tree)?;
        parallel(&missing, |_, unit| {
            // One that fails is missing, which whoever needs it says.
            let _ = repeat(
                &entered,
                &original.record,
                unit,
                Again::Exact,
                &original.remade(unit),
                self.interrupt,
            )?;
            Ok(())
        })?;
        Ok(())
    }

    /// Joins the objects of each crate.
    fn join(&self, built: &Built) -> Result<(), Error> {
        let crates: Vec<&Unit> = (built.units.iter())
            .filter(|unit| unit.language == Language::Rust)
            .collect();
        if !crates.is_empty() {
            fs::create_dir_all(&built.kept).map_err(Error::io(&built.kept))?;
        }
        parallel(&crates, |_, unit| joined::join(&self.site, built, unit))?;
        Ok(())
    }

    /// The object of a unit as its build made it.
    pub(super) fn object(&self, built: &Built, unit: &Unit) -> Option<PathBuf> {
        let path = match &unit.object {
            Some(object) if unit.language != Language::Rust => self.site.host(&built.tree, object),
            _ => built.remade(unit),
        };
        path.is_file().then_some(path)
    }

    pub(super) fn objects(&self, original: &Built) -> Vec<PathBuf> {
        original
            .units
            .iter()
            .filter_map(|unit| self.object(original, unit))
            .collect()
    }

    pub(super) fn programs(&self, original: &Built) -> Vec<Program> {
        let remade: HashMap<_, _> = (original.units.iter())
            .filter(|unit| unit.object.is_none() || unit.language == Language::Rust)
            .map(|unit| ((unit.call, unit.at), original.remade(unit)))
            .collect();
        programs(
            &original.record,
            &original.units,
            &self.site,
            &original.tree,
            &original.kept,
            &remade,
        )
    }

    /// A tree as commands see it.
    pub(super) fn enter<'t>(&'t self, tree: &'t Path) -> Result<Entered<'t>, Error> {
        self.site.enter(tree)
    }
}

/// Where copies for the build of a tree go.
fn kept(tree: &Path) -> &'static str {
    if tree.ends_with("patched") {
        "kept.patched"
    } else {
        "kept"
    }
}

/// Is this the extension of a source file or header?
pub(super) fn is_source_extension(extension: &str) -> bool {
    const SOURCES: &[&str] = &[
        "c", "cc", "cp", "cpp", "cxx", "c++", "C", "m", "mm", "s", "S", "h", "hh", "hpp", "hxx",
        "H", "inl", "ipp", "tcc", "rs",
    ];
    SOURCES.contains(&extension)
}

/// May a build be taken up where it is after a change of this file? Few makefiles say that all depends on them.
fn is_source(file: &Path) -> bool {
    const DOCUMENTS: &[&str] = &["md", "rst", "adoc", "html", "po"];
    const NAMES: &[&str] = &[
        "README",
        "NEWS",
        "CHANGES",
        "ChangeLog",
        "Changes",
        "AUTHORS",
        "THANKS",
    ];
    match file.extension().and_then(|extension| extension.to_str()) {
        Some(extension) => is_source_extension(extension) || DOCUMENTS.contains(&extension),
        None => file
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| NAMES.contains(&name)),
    }
}

/// A build that failed, and what was seen of it.
struct Failed {
    error: Error,
    record: Option<Record>,
}

impl From<Error> for Box<Failed> {
    fn from(error: Error) -> Self {
        Box::new(Failed {
            error,
            record: None,
        })
    }
}

impl Failed {
    /// Did it fail for another reason than that a source file of the build does not compile?
    fn retry(&self, original: &Built) -> bool {
        let Some(record) = &self.record else {
            return false;
        };
        let bad = record.calls.iter().filter(|call| call.exit != Some(0));
        let mut sources = bad.flat_map(|call| {
            let parsed = super::arguments::parse(&call.arguments);
            parsed
                .sources
                .into_iter()
                .map(|(at, _)| absolute(&call.directory, Path::new(&call.arguments[at])))
        });
        !sources.any(|source| original.units.iter().any(|unit| unit.source == source))
    }
}
