//! Why two objects can't be compared at all. What is compared and must not become a patch is a
//! [`Refusal`](super::Refusal).

use std::fmt;

/// Which of the two objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Compiled from the source of what runs.
    Original,
    /// Compiled from the source with the fix.
    Patched,
}

impl Error {
    /// Which of the two objects is to blame, if it is one.
    pub fn side(&self) -> Option<Side> {
        match self {
            Error::Object { side, .. } | Error::Lto { side } | Error::Section { side, .. } => {
                Some(*side)
            }
            Error::TooMuch | Error::Uncalled { .. } | Error::Unnamed { .. } | Error::Write(_) => {
                None
            }
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Original => "the original object",
            Side::Patched => "the patched object",
        })
    }
}

/// Why there is no comparison. Each message is one sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not an object file that can be read.
    #[error(
        "{side} is not a usable object file: {why}; give what `cc -c -ffunction-sections -fdata-sections` made"
    )]
    Object {
        /// Which object.
        side: Side,
        /// What is wrong with it.
        why: String,
    },
    /// It holds no machine code that will run.
    #[error(
        "{side} was compiled with -flto, so the code that runs is made when the program is linked; compile it with \
         -fno-lto, or compare what the link-time compiler makes (link with -save-temps and give the .ltrans*.o files)"
    )]
    Lto {
        /// Which object.
        side: Side,
    },
    /// A section says something impossible.
    #[error("{side}: section `{section}` is malformed: {why}; compile it again")]
    Section {
        /// Which object.
        side: Side,
        /// Its section.
        section: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Comparing would take for ever: no compiler makes such an object.
    #[error(
        "the constants of the objects overlap so much that they can't be compared; compile them again"
    )]
    TooMuch,
    /// Nothing refers to a function whose callers are asked for.
    #[error(
        "no machine code of the objects calls `{name}`, whose callers --with-callers asks for; write the name as `nm` shows \
         it, and leave out what is inlined"
    )]
    Uncalled {
        /// As it was given.
        name: String,
    },
    /// A reference from code that belongs in the patch to something that a patch can't name.
    #[error(
        "`{function}` refers to {what}; compile both objects with -ffunction-sections -fdata-sections"
    )]
    Unnamed {
        /// The function that refers to it.
        function: String,
        /// What has no name.
        what: String,
    },
    /// The object of the result could not be written.
    #[error("the result could not be written ({0}); report this as a bug of livegraft")]
    Write(String),
}
