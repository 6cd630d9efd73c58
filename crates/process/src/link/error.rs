//! Why a patch cannot be linked into a process.

use crate::object::ObjectError;

/// Why a symbol has no value in the process.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The patch names an object that the process has not loaded.
    #[error(
        "the process has not loaded `{object}`, which the patch refers to; load the patch into a process that uses it"
    )]
    ObjectNotLoaded {
        /// Its name in the patch.
        object: String,
    },
    /// A lookup in an object failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Nothing that the patched objects can see defines the symbol.
    #[error(
        "`{name}` is defined neither in {object} nor in a library that it is linked with; define it in the patch, or \
         name the object that has it with a .klp.sym symbol"
    )]
    Undefined {
        /// The symbol.
        name: String,
        /// The patched object, or objects.
        object: String,
    },
    /// Two static symbols of two patched objects have the name.
    #[error(
        "`{name}` is a static symbol of both {first} and {second}; name the object with a .klp.sym symbol"
    )]
    InTwoObjects {
        /// The symbol.
        name: String,
        /// One of the objects.
        first: String,
        /// The other one.
        second: String,
    },
    /// Two versions of one symbol are in use in one object.
    #[error(
        "{object} uses two versions of `{name}`; name the object that defines the right one with a .klp.sym symbol"
    )]
    TwoVersions {
        /// The symbol.
        name: String,
        /// The patched object.
        object: String,
    },
    /// An IFUNC that the process has not called yet, where its resolver may not be called.
    #[error(
        "`{name}` in {object} is an indirect function (IFUNC) that the process has not resolved yet; start the program \
         with LD_BIND_NOW=1, or avoid `{name}` in the patch"
    )]
    IndirectUnresolved {
        /// The symbol.
        name: String,
        /// The object that defines it.
        object: String,
    },
    /// Nothing in the process says where a library's thread-local storage is.
    #[error(
        "`{name}` is thread-local in {object}, and nothing in the process tells where {object} keeps its thread-local \
         storage; reach the variable through a function of {object} instead"
    )]
    ThreadLocalUnknown {
        /// The symbol.
        name: String,
        /// The object that defines it.
        object: String,
    },
    /// The symbol's value contradicts the object's segments.
    #[error("{object} gives `{name}` a value outside of its own storage; the file is damaged")]
    BadValue {
        /// The symbol.
        name: String,
        /// The object that defines it.
        object: String,
    },
    /// The target's memory could not be read.
    #[error(
        "reading the process's memory at {avma:#x} for `{name}` failed ({source}); the process may have ended"
    )]
    Memory {
        /// The symbol that was looked up.
        name: String,
        /// Where.
        avma: u64,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a patch cannot be linked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A section that is writable and executable.
    #[error("section {section} of the patch is writable and executable; make it one or the other")]
    WritableCode {
        /// Its name.
        section: String,
    },
    /// Constructors and destructors are not run.
    #[error(
        "section {section} of the patch lists constructors or destructors, which nobody would run; use the patch's callbacks"
    )]
    Constructors {
        /// Its name.
        section: String,
    },
    /// A thread-local variable of the patch's own: threads that exist already have no storage for it.
    #[error(
        "the patch defines thread-local storage (`{name}`), for which running threads have no room; use a shadow variable"
    )]
    ThreadLocalDefined {
        /// The variable or the section.
        name: String,
    },
    /// An alignment beyond a page.
    #[error(
        "section {section} of the patch wants an alignment of {align} bytes; at most 4096 can be given"
    )]
    BadAlignment {
        /// Its name.
        section: String,
        /// `sh_addralign`.
        align: u64,
    },
    /// More memory than a patch can sensibly need.
    #[error("the patch needs {size} bytes of memory; at most {limit} are given to one patch")]
    TooLarge {
        /// Needed, in bytes.
        size: u64,
        /// Allowed, in bytes.
        limit: u64,
    },
    /// An index in the patch does not exist; the reader of patch files refuses those.
    #[error("the patch is inconsistent: {what}; pack it again")]
    Inconsistent {
        /// What is wrong.
        what: String,
    },
    /// The layout is another patch's.
    #[error("the layout was made for another patch; make it again")]
    WrongLayout,
    /// The memory chosen does not suit the patch.
    #[error("the patch cannot be placed at {base:#x}: {why}")]
    BadBase {
        /// Its address (avma).
        base: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A relocation type that is not handled.
    #[error(
        "{place}: relocation {r_type} against `{symbol}` is not supported; compile the patch with -fPIC and the default code model"
    )]
    Unsupported {
        /// Where.
        place: String,
        /// R_X86_64_*.
        r_type: String,
        /// Against what.
        symbol: String,
    },
    /// The value does not fit its field.
    #[error(
        "{place}: `{symbol}` is out of reach for relocation {r_type}; compile the patch with -fPIC"
    )]
    OutOfReach {
        /// Where.
        place: String,
        /// R_X86_64_*.
        r_type: String,
        /// Against what.
        symbol: String,
    },
    /// The field does not lie in the section's bytes.
    #[error(
        "{place}: relocation {r_type} does not lie in the section's contents; the object file is damaged, compile it again"
    )]
    OutsideSection {
        /// Where.
        place: String,
        /// R_X86_64_*.
        r_type: String,
    },
    /// A loaded section refers to one that is not.
    #[error("{place}: refers to `{symbol}`, which is not loaded with the patch; pack it again")]
    NotLoaded {
        /// Where.
        place: String,
        /// Against what.
        symbol: String,
    },
    /// A thread-local relocation against something that is not, or the reverse.
    #[error(
        "{place}: relocation {r_type} does not suit `{symbol}`: one is thread-local, the other is not; declare it in the patch as the program does"
    )]
    ThreadLocalMismatch {
        /// Where.
        place: String,
        /// R_X86_64_*.
        r_type: String,
        /// Against what.
        symbol: String,
    },
    /// The access model needs an offset from the thread pointer, which a library loaded later has not got.
    #[error(
        "{place}: `{symbol}` has no fixed offset from the thread pointer, which relocation {r_type} needs; compile the \
         patch with -fPIC -ftls-model=global-dynamic"
    )]
    NoThreadOffset {
        /// Where.
        place: String,
        /// R_X86_64_*.
        r_type: String,
        /// Against what.
        symbol: String,
    },
    /// The access model needs a module number, which nothing in the process shows.
    #[error(
        "{place}: relocation {r_type} needs the module number of `{symbol}`, which nothing in the process shows; \
         compile the patch with -fPIC -ftls-model=initial-exec"
    )]
    NoModule {
        /// Where.
        place: String,
        /// R_X86_64_*.
        r_type: String,
        /// Against what.
        symbol: String,
    },
    /// A symbol has no value in the process.
    #[error("{place}: {source}")]
    Resolve {
        /// Where the symbol is used first.
        place: String,
        /// Why.
        source: ResolveError,
    },
}
