//! What can be wrong with a patch file, an object file or a target: one variant per thing that a user can act on.

use std::path::PathBuf;

use crate::clobber::Refusal;

/// Why a patch could not be read or made. Each message is one sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum Error {
    // Reading.
    #[error("the file is not an ELF file; give a patch that `livegraft pack` made")]
    NotElf,
    #[error("the file is cut off; copy it again or pack it again")]
    Truncated,
    #[error("the file is not for 64-bit x86-64; pack the patch for this machine")]
    WrongMachine,
    #[error("the file is not an ELF relocatable object; give a patch that `livegraft pack` made")]
    NotRelocatable,
    #[error(
        "the file is an object file but not a livegraft patch; make one from it with `livegraft pack`"
    )]
    NotAPatch,
    #[error("the patch is corrupted (its checksum does not match); copy it again or pack it again")]
    Corrupted,
    #[error(
        "the patch has format version {found} and this livegraft reads version {supported}; pack it again with this livegraft"
    )]
    Version { found: u32, supported: u32 },
    #[error(
        "what the patch says of its changes has version {found} and this livegraft reads version {supported}; build it again with this livegraft"
    )]
    ChangesVersion { found: u32, supported: u32 },
    #[error("the file is malformed: {0}; compile and pack it again")]
    Malformed(String),

    // What the compiler made.
    #[error("{path} is not an x86-64 ELF object file ({why}); compile it with `cc -O2 -fPIC -c`", path = .path.display())]
    InputNotObject { path: PathBuf, why: String },
    #[error(
        "no object file was given; compile the patch with `cc -O2 -fPIC -c` and pack the result"
    )]
    NoInput,
    #[error(
        "several object files need the linker `ld`, which could not be run ({why}); install binutils or pack one object file"
    )]
    NoLinker { why: String },
    #[error("`ld -r` could not join the object files ({why}); make them link with each other")]
    Linker { why: String },
    #[error(
        "the object was compiled with -flto and holds no machine code; compile it with -fno-lto"
    )]
    Lto,
    #[error(
        "section `{section}` holds constructors or destructors (C++ static initialisers), which a patch cannot run; initialise with constants"
    )]
    Constructors { section: String },
    #[error(
        "the patch defines the thread-local variable `{symbol}`, for which running threads have no room; use a shadow variable or a global"
    )]
    ThreadLocal { symbol: String },
    #[error(
        "the patch defines the indirect function (ifunc) `{symbol}`; define an ordinary function"
    )]
    Ifunc { symbol: String },
    #[error(
        "section `{section}` needs an alignment of {align}, more than a page; lower the alignment to 4096 or less"
    )]
    Alignment { section: String, align: u64 },
    #[error(
        "section `{section}` is writable and executable at once; put code and data in different sections"
    )]
    WriteExec { section: String },
    #[error(
        "section `{section}` has a relocation of type {name} ({r_type}), which livegraft cannot apply; compile with -fPIC and the default -mcmodel=small"
    )]
    Relocation {
        section: String,
        name: &'static str,
        r_type: u32,
    },

    // The klp structs.
    #[error("the object names no patch; add KLP_PATCH(patch) from <livepatch.h>")]
    NoPatch,
    #[error("there is more than one KLP_PATCH; keep one, with all objects in it")]
    SeveralPatches,
    #[error("the patch has no objects; list at least one klp_object in klp_patch.objs")]
    NoObjects,
    #[error("{object} is listed twice; join its funcs in one klp_object")]
    DuplicateObject { object: String },
    #[error("{object} has no funcs; list at least one klp_func or leave the object out")]
    NoFuncs { object: String },
    #[error("the klp_func for `{func}` has no new_func; name its replacement")]
    NoNewFunc { func: String },
    #[error(
        "the replacement `{new_func}` of `{func}` is not defined in the patch; add the object file that defines it"
    )]
    NewFuncNotInPatch { func: String, new_func: String },
    #[error(
        "the new_func of `{func}` is not the start of a function; name a function, and do not strip the object file"
    )]
    NewFuncNotFunction { func: String },
    #[error("{0}")]
    Unsupported(String),

    // The targets.
    #[error("{path} is not usable as a target: {why}", path = .path.display())]
    BadTarget { path: PathBuf, why: String },
    #[error("{path} has no build-id, by which a process is recognised; link it with -Wl,--build-id", path = .path.display())]
    NoBuildId { path: PathBuf },
    #[error("{first} and {second} are the same build of {object}; give each build once", first = .first.display(), second = .second.display())]
    DuplicateTarget {
        object: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error(
        "the patch changes {object}, for which no target was given; add its file with --target"
    )]
    NoTarget { object: String },
    #[error(
        "the object name `{object}` stands for the executable in patch files; use NULL for the executable, or another soname"
    )]
    ReservedObject { object: String },

    // Symbols of the targets.
    #[error(
        "{object} has no symbol `{symbol}`; correct the name, or install its debug symbols if it is stripped"
    )]
    MissingSymbol { object: String, symbol: String },
    #[error(
        "{object} has {count} symbols `{symbol}` ({candidates}); set old_sympos to the number of the one that is meant"
    )]
    AmbiguousFunc {
        object: String,
        symbol: String,
        count: usize,
        candidates: String,
    },
    #[error(
        "{object} has {} `{symbol}`, so there is no number {sympos} ({candidates}); correct the sympos",
        crate::counted(*.count, "symbol", "symbols")
    )]
    SymposRange {
        object: String,
        symbol: String,
        sympos: u64,
        count: usize,
        candidates: String,
    },
    #[error("`{symbol}` in {object} is {kind}, not a function; only functions can be replaced")]
    NotAFunction {
        object: String,
        symbol: String,
        kind: &'static str,
    },
    #[error(
        "`{symbol}` in {object} has size 0 in the symbol table, so its end is unknown; replace the function that contains it"
    )]
    NoSize { object: String, symbol: String },
    #[error(
        "the code of `{symbol}` is not in the file of {object}; give the file that the process runs, not a debug file"
    )]
    NoCode { object: String, symbol: String },
    #[error("`{symbol}` in {object} is replaced twice; keep one klp_func for it")]
    DuplicateFunc { object: String, symbol: String },
    #[error(
        "the patch refers to `{symbol}`, which is ambiguous in the target ({candidates}); say which one with KLP_SYM(alias, \"{symbol}\", object, sympos)"
    )]
    AmbiguousReference { symbol: String, candidates: String },
    #[error(
        "KLP_SYM names `{alias}`, which the patch defines itself; declare it extern under a name of its own"
    )]
    AliasDefined { alias: String },
    #[error("KLP_SYM gives `{alias}` two meanings; use one alias for each symbol")]
    AliasTwice { alias: String },
    #[error(
        "KLP_SYM for `{alias}` names {object}, which the patch does not change; name an object of the patch"
    )]
    AliasObject { alias: String, object: String },
    #[error(
        "the patch uses `{symbol}` of {object} as {used}, but it is {found} there; correct its declaration"
    )]
    ReferenceKind {
        symbol: String,
        object: String,
        used: &'static str,
        found: &'static str,
    },
    #[error(transparent)]
    Clobber(#[from] Refusal),
    #[error("the patch could not be written ({0}); report this as a bug of livegraft")]
    Write(String),
}
