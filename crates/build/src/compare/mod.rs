//! What changed between two objects of one source file, function by function.
//!
//! Both objects are compiled with `-ffunction-sections -fdata-sections`, one from the source of what runs, one from the
//! source with the fix. Nothing is compared by its bytes or its place: instructions are decoded side by side, and what
//! they refer to is the same if it is the same symbol or the same content. When in doubt a function is changed: one more
//! function in a patch does no harm. What must not become a patch is refused by name.

mod code;
mod correlate;
mod decide;
mod dwarf;
mod error;
mod extract;
mod frames;
mod lines;
mod module;
mod names;
mod pair;
mod plan;
mod refuse;
mod returns;
mod types;

pub use error::{Error, Side};
pub use extract::{LOCALS_SECTION, REPLACED_SECTION, extract};
pub use refuse::{Refusal, RefusalKind};

use module::Module;
use std::fmt;

/// What the author of a patch decides.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Symbols, or kinds of refusals by their names, that the author takes on.
    pub allow: Vec<String>,
    /// Functions whose callers go into the patch although they did not change.
    pub with_callers: Vec<String>,
}

/// The difference between two objects.
pub struct Comparison<'a> {
    /// All functions of both objects, those of the patched one first, in the order of their symbols.
    pub functions: Vec<Function>,
    /// Variables and constants with a name that are new, changed or gone.
    pub data: Vec<Datum>,
    /// What forbids to make a patch of it.
    pub refusals: Vec<Refusal>,
    /// What would, had the author not taken it on.
    pub allowed: Vec<Refusal>,
    plan: plan::Plan,
    complete: Result<(), Error>,
    original: Module<'a>,
    patched: Module<'a>,
}

/// A function of one or both objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// As the original calls it, or the patched object if it is new.
    pub name: String,
    /// The source file of a static function, as the compiler recorded it.
    pub file: Option<String>,
    /// Whether other objects can call it by its name.
    pub global: bool,
    /// What became of it.
    pub status: Status,
    /// Why it is changed; empty otherwise.
    pub why: Vec<Why>,
    /// Bytes in the original.
    pub old_size: Option<u64>,
    /// Bytes in the patched object.
    pub new_size: Option<u64>,
}

/// What became of a function or a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The same code.
    Unchanged,
    /// Other code, or another value.
    Changed,
    /// Only in the patched object.
    New,
    /// Only in the original.
    Removed,
}

impl Status {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Status::Unchanged => "unchanged",
            Status::Changed => "changed",
            Status::New => "new",
            Status::Removed => "removed",
        }
    }
}

/// Why a function goes into the patch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Its code differs, and nothing tells more.
    Code,
    /// What differs first was inlined from this function, as the debug information says, and so do all functions that it
    /// was inlined into.
    Inlined(String),
    /// It is a part that the compiler split off this function.
    Part(String),
    /// This part of it, which the compiler split off, differs.
    HasPart(String),
    /// Only registers and moves differ, and it calls this function, which changed: the compiler counts on what a callee
    /// leaves alone (gcc's -fipa-ra).
    Registers(String),
    /// It handles exceptions differently.
    Exceptions,
    /// It calls this function, and `--with-callers` asks for it.
    Calls(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Code => write!(f, "its code differs"),
            Why::Inlined(name) => {
                write!(f, "it first differs in `{name}`, which is inlined into it")
            }
            Why::Part(owner) => write!(f, "a part of `{owner}`"),
            Why::HasPart(part) => write!(f, "its part `{part}` differs"),
            Why::Registers(callee) => {
                write!(f, "it relies on the registers that `{callee}` leaves alone")
            }
            Why::Exceptions => write!(f, "its exception table differs"),
            Why::Calls(callee) => write!(f, "it calls `{callee}` (--with-callers)"),
        }
    }
}

/// A variable, or a constant with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datum {
    /// Its symbol.
    pub name: String,
    /// What became of it; never `Unchanged`.
    pub status: Status,
    /// Whether the program can't change it.
    pub constant: bool,
    /// Bytes in the original.
    pub old_size: Option<u64>,
    /// Bytes in the patched object.
    pub new_size: Option<u64>,
}

impl Comparison<'_> {
    /// Whether the code differs: whether there is anything to make a patch of.
    pub fn changes_code(&self) -> bool {
        let unchanged = |f: &Function| matches!(f.status, Status::Unchanged | Status::Removed);
        !self.functions.iter().all(unchanged)
    }
}

/// Compares two objects of one source file.
///
/// # Errors
/// If an object can't be read, or was compiled in a way that can't be compared.
pub fn compare<'a>(
    original: &'a [u8],
    patched: &'a [u8],
    options: &Options,
) -> Result<Comparison<'a>, Error> {
    let original = Module::read(original, Side::Original)?;
    let patched = Module::read(patched, Side::Patched)?;
    let decided = decide::decide(&original, &patched, options)?;
    Ok(Comparison {
        functions: decided.functions,
        data: decided.data,
        refusals: decided.refusals,
        allowed: decided.allowed,
        plan: decided.plan,
        complete: decided.complete,
        original,
        patched,
    })
}
