//! What changed between two objects of one source file, function by function.
//!
//! Both objects are compiled with `-ffunction-sections -fdata-sections`, one from the source of what runs, one from the
//! source with the fix. Nothing is compared by its bytes or its place: instructions are decoded side by side, and what
//! they refer to is the same if it is the same symbol or the same content. When in doubt a function is changed: one more
//! function in a patch does no harm. What must not become a patch is refused by name.

mod code;
mod correlate;
mod decide;
mod declared;
mod difference;
mod dwarf;
mod error;
mod extract;
mod frames;
mod lines;
mod listing;
mod module;
mod names;
mod pair;
mod plan;
mod reasons;
mod refuse;
mod returns;
mod texts;
mod types;

pub use error::{Error, Side};
pub use extract::{LOCALS_SECTION, REPLACED_SECTION, extract, extract_with};
pub use livegraft_patchfile::changes::Status;
pub use refuse::{Refusal, RefusalKind};
pub use texts::{NoTexts, Texts};

use difference::Differences;
use livegraft_patchfile::changes::{Change, Source};
use livegraft_patchfile::elf::SymPlace;
use module::Module;
use object::elf;
use pair::Pair;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

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
    /// Of [`Options::with_callers`] what nothing in the patched object refers to.
    pub uncalled: Vec<String>,
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
    /// File and line of its declaration in the patched source; by debug information.
    pub declared: Option<String>,
    /// Whether other objects can call it by its name.
    pub global: bool,
    /// What became of it.
    pub status: Status,
    /// Why it is changed, or new where more than that can be said; empty otherwise.
    pub why: Vec<Why>,
    /// Bytes in the original.
    pub old_size: Option<u64>,
    /// Bytes in the patched object.
    pub new_size: Option<u64>,
    /// Which items of the two objects it is.
    numbers: (Option<usize>, Option<usize>),
}

/// Why a function goes into the patch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The body of its source is another one.
    Source,
    /// The source of this function, which is inlined into it, is another one.
    Inlined(String),
    /// The same of one that is not inlined into it any more.
    WasInlined(String),
    /// Its source names this macro, whose definition is another one.
    Macro(String),
    /// The source of the first, which is inlined into it, names the second, a macro whose definition is another one.
    InlinedMacro(String, String),
    /// It uses this static constant, whose content is another one.
    Constant(String),
    /// What differs first was inlined from this function, as the debug information says, and so do all functions that it
    /// was inlined into.
    First(String),
    /// Its code differs, and nothing tells more.
    Code,
    /// Its variables are of this struct, or lead to it, and the struct has another layout.
    Struct(String),
    /// The compiler inlines this function into it, which it did not.
    Inlines(String),
    /// The compiler does not inline this function into it, which it did.
    InlinesNoMore(String),
    /// Only registers and moves differ, and it calls this function, which changed: the compiler counts on what a callee
    /// leaves alone (gcc's -fipa-ra).
    Registers(String),
    /// It handles exceptions differently.
    Exceptions,
    /// It is a copy of the first that the compiler made for the second: `constprop`, `isra`, `part`.
    Copy(String, String),
    /// It is a part that the compiler split off this function.
    Part(String),
    /// This part of it, which the compiler split off, differs.
    HasPart(String),
    /// It is new as code of its own: in the original it was inlined wherever it is called.
    Outlined,
    /// It calls this function, and `--with-callers` asks for it.
    Calls(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Source => write!(f, "its source is changed"),
            Why::Inlined(name) => {
                write!(
                    f,
                    "`{name}`, which is inlined into it, is changed in the source"
                )
            }
            Why::WasInlined(name) => write!(
                f,
                "`{name}`, which was inlined into it and is not any more, is changed in the source"
            ),
            Why::Macro(name) => write!(f, "it uses the macro `{name}`, which is changed"),
            Why::InlinedMacro(name, used) => write!(
                f,
                "`{name}`, which is inlined into it, uses the macro `{used}`, which is changed"
            ),
            Why::Constant(name) => write!(f, "it uses the constant `{name}`, which is changed"),
            Why::First(name) => {
                write!(f, "it first differs in `{name}`, which is inlined into it")
            }
            Why::Code => write!(f, "its code differs"),
            Why::Struct(name) => write!(
                f,
                "`{name}`, which its variables are or lead to, has another layout"
            ),
            Why::Inlines(name) => {
                write!(f, "the compiler inlines `{name}` into it, which it did not")
            }
            Why::InlinesNoMore(name) => {
                write!(f, "the compiler does not inline `{name}` into it any more")
            }
            Why::Registers(callee) => {
                write!(f, "it relies on the registers that `{callee}` leaves alone")
            }
            Why::Exceptions => write!(f, "its exception table differs"),
            Why::Copy(of, how) => {
                write!(f, "a copy of `{of}` that the compiler made ({how})")
            }
            Why::Part(owner) => write!(f, "a part of `{owner}`"),
            Why::HasPart(part) => write!(f, "its part `{part}` differs"),
            Why::Outlined => write!(f, "in the original it is inlined wherever it is called"),
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

impl Function {
    /// As it is shown and recorded, without a difference of its instructions.
    pub fn change(&self) -> Change {
        Change {
            name: self.name.clone(),
            file: self.file.clone(),
            declared: self.declared.clone(),
            global: self.global,
            status: self.status,
            why: self.why.iter().map(ToString::to_string).collect(),
            old_size: self.old_size,
            new_size: self.new_size,
            diff: None,
        }
    }
}

impl Comparison<'_> {
    /// What a patch file says of this source file: its functions that are not as they were, with their instructions that
    /// differ, and what the author took on.
    pub fn record(&self, path: &Path, texts: &dyn Texts) -> Source {
        let pair = Pair::tied(&self.original, &self.patched, &self.plan.backward);
        let differing = self.functions.iter().filter_map(|function| {
            let changed = function.status == Status::Changed;
            function
                .numbers
                .0
                .zip(function.numbers.1)
                .filter(|_| changed)
        });
        let differences = Differences::new(&pair, differing);
        let functions = self.functions.iter();
        let functions = functions.filter(|function| function.status != Status::Unchanged);
        Source {
            path: path.display().to_string(),
            functions: functions
                .map(|function| Change {
                    diff: function
                        .numbers
                        .1
                        .and_then(|new| differences.of(new, texts)),
                    ..function.change()
                })
                .collect(),
            allowed: self.allowed.iter().map(ToString::to_string).collect(),
        }
    }

    /// The source file, as the patched object calls it.
    fn source(&self) -> &Path {
        let mut symbols = self.patched.image.symbols.iter();
        let file = symbols.find(|s| s.kind == object::elf::STT_FILE.0);
        Path::new(file.map_or("", |s| s.name.as_str()))
    }

    /// The names that the original defines for other objects too.
    #[must_use]
    pub fn defined(&self) -> BTreeSet<&str> {
        let symbols = self.original.image.symbols.iter();
        let defined = symbols.filter(|s| {
            let place = matches!(s.place, SymPlace::Section(_) | SymPlace::Common);
            place && s.bind != elf::STB_LOCAL.0
        });
        defined.map(|s| s.name.as_str()).collect()
    }

    /// Whether the code differs: whether there is anything to make a patch of.
    pub fn changes_code(&self) -> bool {
        let unchanged = |f: &Function| matches!(f.status, Status::Unchanged | Status::Removed);
        !self.functions.iter().all(unchanged)
    }
}

/// Compares two objects of one source file, of which there is nothing but the objects.
///
/// # Errors
/// If an object can't be read, or was compiled in a way that can't be compared.
pub fn compare<'a>(
    original: &'a [u8],
    patched: &'a [u8],
    options: &Options,
) -> Result<Comparison<'a>, Error> {
    compare_with(original, patched, &Context::default(), options, &NoTexts)
}

/// What is known beyond two objects.
#[derive(Debug, Clone, Default)]
pub struct Context<'c> {
    /// Two other objects, of the original and of the patched source, that have debug information.
    pub described: Option<[&'c [u8]; 2]>,
    /// Functions and variables of the original that the target does not contain, since the linker has removed them: name,
    /// and source file of a static one. Such a function needs no new version, and comes along where one refers to it.
    pub absent: BTreeSet<(String, Option<String>)>,
}

/// Compares two objects of one source file, where more is known. The text of the source tells more of the reasons, and
/// changes nothing else.
///
/// # Errors
/// If an object can't be read, or was compiled in a way that can't be compared.
pub fn compare_with<'a>(
    original: &'a [u8],
    patched: &'a [u8],
    context: &Context<'_>,
    options: &Options,
    texts: &dyn Texts,
) -> Result<Comparison<'a>, Error> {
    let original = Module::read(original, Side::Original)?;
    let patched = Module::read(patched, Side::Patched)?;
    let described = match context.described {
        Some([a, b]) => Some([
            Module::read(a, Side::Original)?,
            Module::read(b, Side::Patched)?,
        ]),
        None => None,
    };
    let described = match &described {
        Some([a, b]) => [a, b],
        None => [&original, &patched],
    };
    let decided = decide::decide(
        &original,
        &patched,
        described,
        &context.absent,
        options,
        texts,
    )?;
    Ok(Comparison {
        functions: decided.functions,
        data: decided.data,
        refusals: decided.refusals,
        allowed: decided.allowed,
        uncalled: decided.uncalled,
        plan: decided.plan,
        complete: decided.complete,
        original,
        patched,
    })
}
