//! Why a binary, an object or a symbol of it was not accepted: one variant per cause.

use std::fmt;

/// Why there is no proof, or no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say it
pub enum Refusal {
    #[error("{file} is not a 64-bit x86-64 ELF file; give the file that the build made")]
    NotElf { file: String },
    #[error("{file} is damaged ({why}); give an intact file")]
    Malformed { file: String, why: String },
    #[error(
        "{file} is neither an executable nor a shared library; give the linked file that the process runs"
    )]
    NotLinked { file: String },
    #[error("{file} is not a relocatable object; give the files that the compiler made")]
    NotObject { file: String },
    #[error("{file} has no symbol table; link it without -s and do not strip it")]
    NoSymbols { file: String },
    #[error(
        "{object} was compiled with -flto, so its code was made at link time; build with -fno-lto if the target was, or give the objects of the link-time compiler (-save-temps)"
    )]
    Lto { object: String },
    #[error(
        "nothing of the code of the {objects} objects is in the target; give the binary that this build makes"
    )]
    WrongProgram { objects: usize },
    #[error(
        "the target and the objects need more comparisons than a real program would; give the objects that were linked into it"
    )]
    TooMuch,
    #[error(
        "`{function}` of {object} differs in the target at {svma:#x}:{side}\nbuild the version that runs, with the compiler and flags that built it"
    )]
    Code {
        object: String,
        function: String,
        svma: u64,
        side: Box<SideBySide>,
    },
    #[error(
        "`{symbol}` of {object}{used_by} differs in the target at {svma:#x}: {contents}; build the version that runs"
    )]
    Data {
        object: String,
        symbol: String,
        svma: u64,
        /// ", to which `f` refers," or nothing.
        used_by: String,
        /// What was built, and what is there.
        contents: String,
    },
    #[error(
        "`{symbol}` of {object} fits the target at {addresses}, and nothing tells which it is; give all objects of the program"
    )]
    Ambiguous {
        object: String,
        symbol: String,
        addresses: String,
    },
    #[error(
        "`{symbol}` of {object} and `{other}` of {other_object} are both at {svma:#x} in the target (identical code folding, or one of them was left out), so one can't be told from the other"
    )]
    Folded {
        object: String,
        symbol: String,
        other_object: String,
        other: String,
        svma: u64,
    },
    #[error(
        "`{symbol}` of {object} is not in the target{why}; it was removed by the linker, or the target was built from other objects"
    )]
    Absent {
        object: String,
        symbol: String,
        /// A clause, or nothing.
        why: String,
    },
    #[error(
        "`{symbol}` of {object} is a weak definition, in whose place another one runs; name the object that has that"
    )]
    Overridden { object: String, symbol: String },
    #[error(
        "`{symbol}` of {object} can't be found: it has too little code of its own, and nothing that was found refers to it"
    )]
    TooSmall { object: String, symbol: String },
    #[error("`{symbol}` of {object} can't be found: nothing that was found refers to it")]
    Unreferenced { object: String, symbol: String },
    #[error(
        "`{symbol}` of {object} has a relocation of type {r_type} that livegraft does not know; compile with the default -mcmodel=small"
    )]
    Relocation {
        object: String,
        symbol: String,
        r_type: u32,
    },
    #[error("{object} defines no symbol `{symbol}`; correct its name")]
    NoSymbol { object: String, symbol: String },
    #[error("{object} defines `{symbol}` {count} times; say which one is meant")]
    SeveralSymbols {
        object: String,
        symbol: String,
        count: usize,
    },
}

/// The first instruction that differs, as it was built and as it is in the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideBySide {
    /// Offset in the function.
    pub offset: u64,
    /// The instruction as it was built, with the symbol that its relocation names.
    pub built: String,
    /// What is at its place.
    pub runs: String,
    /// What differs, where the instructions are alike: what a relocation leads to.
    pub because: Option<String>,
}

impl fmt::Display for SideBySide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "\n  +{:#x}  built: {:<48} target: {}",
            self.offset, self.built, self.runs
        )?;
        match &self.because {
            Some(because) => write!(f, "\n  ({because})"),
            None => Ok(()),
        }
    }
}
