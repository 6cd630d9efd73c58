//! The section `.livegraft.changes`: what a patch changes and why, as the comparison of its sources found it. It is for
//! people: it is not loaded into the target, and the loader does not read it.
//!
//! The section is a sequence of chunks, one per source file, so that `ld -r` may join those of several objects: version
//! u32, length u32 (both little-endian), and so many bytes of a [`Source`] in postcard's format. Whoever changes one of
//! these types changes the version.

use std::borrow::Cow;
use std::fmt;

use object::elf::SHT_PROGBITS;
use serde::{Deserialize, Serialize};

use crate::elf::{Image, Sec};
use crate::{Error, counted};

/// The section.
pub const SECTION: &str = ".livegraft.changes";
/// The version that is written, and read.
const VERSION: u32 = 1;
/// No section is larger; differences that do not fit are left out.
const LARGEST: usize = 16 << 20;
/// The shortest difference that is left out for that.
const SHORT: usize = 64 << 10;

/// What a patch takes from one source file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file, relative to the source that was built.
    pub path: String,
    /// Its functions that are not as they were, those of the patched source first.
    pub functions: Vec<Change>,
    /// What the author has taken on, each a sentence.
    pub allowed: Vec<String>,
}

/// What became of a function, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// As the original calls it, or the patched object if it is new.
    pub name: String,
    /// The source file of a static function, as the compiler recorded it.
    pub file: Option<String>,
    /// Where it is declared, in the patched source; by debug information.
    pub declared: Option<String>,
    /// Whether other objects can call it by its name.
    pub global: bool,
    /// What became of it.
    pub status: Status,
    /// Why it goes into the patch, each a clause.
    pub why: Vec<String>,
    /// Bytes in the original.
    pub old_size: Option<u64>,
    /// Bytes in the patched object.
    pub new_size: Option<u64>,
    /// Where its instructions differ; `None`: that is not recorded.
    pub diff: Option<Vec<Hunk>>,
}

/// What became of a function or a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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

/// Instructions of a function around some that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hunk {
    /// The source line of the first instruction that differs, in the patched source if it has one; by debug information.
    pub at: Option<String>,
    /// The instructions, in order.
    pub lines: Vec<Line>,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Who has it.
    pub side: Side,
    /// Its offset in the function, in bytes; in the original if that has it.
    pub offset: u32,
    /// In the syntax of gas, with names for what it refers to.
    pub text: String,
}

/// Who has an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Both versions of the function.
    Both,
    /// Only the old one.
    Old,
    /// Only the new one.
    New,
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

impl Source {
    /// Leaves out differences that are longer.
    fn shorten(&mut self, longest: usize) {
        for change in &mut self.functions {
            let lines = change.diff.iter().flatten().flat_map(|hunk| &hunk.lines);
            let length = lines.fold(0usize, |sum, line| sum.saturating_add(line.text.len()));
            if length > longest {
                change.diff = None;
            }
        }
    }

    /// All texts in it.
    fn texts(&mut self, each: &mut impl FnMut(&mut String)) {
        each(&mut self.path);
        self.allowed.iter_mut().for_each(&mut *each);
        for function in &mut self.functions {
            each(&mut function.name);
            let places = function.file.iter_mut().chain(&mut function.declared);
            places.chain(&mut function.why).for_each(&mut *each);
            for hunk in function.diff.iter_mut().flatten() {
                let lines = hunk.lines.iter_mut().map(|line| &mut line.text);
                hunk.at.iter_mut().chain(lines).for_each(&mut *each);
            }
        }
    }
}

/// Takes out what a terminal would obey.
fn printable(text: &mut String) {
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, "\u{fffd}");
    }
}

impl Change {
    /// Its sizes, as people read them.
    pub fn sizes(&self) -> String {
        match (self.old_size, self.new_size) {
            (Some(old), Some(new)) => format!("{old} -> {}", counted_bytes(new)),
            (Some(size), None) | (None, Some(size)) => counted_bytes(size),
            (None, None) => "no size".to_owned(),
        }
    }
}

fn counted_bytes(size: u64) -> String {
    counted(usize::try_from(size).unwrap_or(usize::MAX), "byte", "bytes")
}

/// The file, its functions with their reasons, and what was taken on.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}:", self.path)?;
        for function in &self.functions {
            writeln!(f, "  {function}")?;
        }
        let mut allowed = self.allowed.iter();
        allowed.try_for_each(|allowed| writeln!(f, "  allowed: {allowed}"))
    }
}

/// One line, and one more for each reason.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status.name(), self.name)?;
        let place = self.declared.as_ref().or(self.file.as_ref());
        if let Some(place) = place {
            write!(f, " ({place})")?;
        }
        write!(f, ", {}", self.sizes())?;
        self.why
            .iter()
            .try_for_each(|why| write!(f, "\n      {why}"))
    }
}

/// The section of one or several source files.
pub fn section(sources: &[Source]) -> Sec<'static> {
    let data: Vec<u8> = sources.iter().flat_map(encode).collect();
    Sec {
        name: SECTION.to_owned(),
        sh_type: SHT_PROGBITS.0,
        flags: 0,
        align: 1,
        size: data.len() as u64,
        entsize: 0,
        link: 0,
        data: Cow::Owned(data),
        relas: Vec::new(),
    }
}

fn encode(source: &Source) -> Vec<u8> {
    // Writing to memory does not fail; what is not there is not shown.
    let mut body = postcard::to_stdvec(source).unwrap_or_default();
    for longest in [SHORT, 0] {
        if body.len() > LARGEST / 2 {
            let mut source = source.clone();
            source.shorten(longest);
            body = postcard::to_stdvec(&source).unwrap_or_default();
        }
    }
    let mut chunk = VERSION.to_le_bytes().to_vec();
    chunk.extend((body.len() as u32).to_le_bytes());
    chunk.extend(body);
    chunk
}

/// What an object file says of its changes; nothing, if it has no such section.
///
/// # Errors
/// [`Error::ChangesVersion`], [`Error::Malformed`].
pub fn read(image: &Image<'_>) -> Result<Vec<Source>, Error> {
    let section = image.section_named(SECTION);
    let section = section.and_then(|number| image.sections.get(number));
    section.map_or(Ok(Vec::new()), |section| decode(&section.data))
}

fn decode(mut rest: &[u8]) -> Result<Vec<Source>, Error> {
    let malformed = |why: &str| Error::Malformed(format!("section `{SECTION}` {why}"));
    // What is read takes more memory than it has bytes.
    if rest.len() > LARGEST {
        return Err(malformed("is larger than 16 MiB"));
    }
    let mut sources = Vec::new();
    while !rest.is_empty() {
        let short = || malformed("is shorter than what it says");
        let (version, tail) = rest.split_first_chunk().ok_or_else(short)?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(Error::ChangesVersion {
                found: version,
                supported: VERSION,
            });
        }
        let (length, tail) = tail.split_first_chunk().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (body, tail) = tail.split_at_checked(length).ok_or_else(short)?;
        match postcard::take_from_bytes::<Source>(body) {
            Ok((mut source, [])) => {
                source.texts(&mut printable);
                sources.push(source);
            }
            Ok(_) => return Err(malformed("is longer than what it says")),
            Err(why) => return Err(malformed(&format!("can't be read ({why})"))),
        }
        rest = tail;
    }
    Ok(sources)
}

/// Leaves out long differences where all together are too large.
pub(crate) fn fit(image: &mut Image<'_>) -> Result<(), Error> {
    let Some(number) = image.section_named(SECTION) else {
        return Ok(());
    };
    let Some(data) = image.sections.get(number).map(|s| s.data.clone()) else {
        return Ok(());
    };
    if data.len() <= LARGEST {
        return decode(&data).map(drop);
    }
    let mut sources = Vec::new();
    let mut rest = &*data;
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let [_, _, _, _, length @ ..] = *head;
        let length = (u32::from_le_bytes(length) as usize).min(tail.len());
        let (chunk, _) = rest.split_at(length.saturating_add(8).min(rest.len()));
        sources.extend(decode(chunk)?);
        rest = tail.get(length..).unwrap_or_default();
    }
    for longest in [SHORT, 0] {
        sources
            .iter_mut()
            .for_each(|source| source.shorten(longest));
        let made = section(&sources);
        if made.data.len() <= LARGEST || longest == 0 {
            if let Some(place) = image.sections.get_mut(number) {
                *place = made;
            }
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        let line = |side, text: &str| Line {
            side,
            offset: 7,
            text: text.to_owned(),
        };
        let change = Change {
            name: "answer".to_owned(),
            file: None,
            declared: Some("one.c:3".to_owned()),
            global: true,
            status: Status::Changed,
            why: vec!["its source is changed".to_owned()],
            old_size: Some(5),
            new_size: Some(1),
            diff: Some(vec![Hunk {
                at: None,
                lines: vec![line(Side::Old, text), line(Side::New, "ret")],
            }]),
        };
        Source {
            path: path.to_owned(),
            functions: vec![change],
            allowed: vec![String::new()],
        }
    }

    #[test]
    fn chunks_are_joined() {
        let all = [source("a.c", "nop"), source("b.c", "call x")];
        let joined = section(&all).data;
        assert_eq!(decode(&joined).unwrap(), all);
        assert_eq!(decode(&[]).unwrap(), []);
        let shown = all[0].functions[0].to_string();
        assert_eq!(
            shown,
            "changed answer (one.c:3), 5 -> 1 byte\n      its source is changed"
        );
    }

    #[test]
    fn what_lies_is_refused_or_read() {
        let made = section(&[source("a.c", "nop")]).data.into_owned();
        for end in 1..made.len() {
            assert!(decode(&made[..end]).is_err(), "{end}");
        }
        let newer = Error::ChangesVersion {
            found: 2,
            supported: 1,
        };
        let mut other = made.clone();
        other[0] = 2;
        assert_eq!(decode(&other), Err(newer));
        for at in 0..made.len() {
            for flip in 1..=255 {
                let mut damaged = made.clone();
                damaged[at] ^= flip;
                let _ = decode(&damaged);
            }
            // Numbers as large as they can be written.
            let mut damaged = made.clone();
            damaged.splice(at..at, [0xff; 9]);
            let _ = decode(&damaged);
        }
        let loud = section(&[source("a.c", "nop\x1b[2J\n")]).data;
        let read = decode(&loud).unwrap();
        let lines = &read[0].functions[0].diff.as_ref().unwrap()[0].lines;
        assert_eq!(lines[0].text, "nop\u{fffd}[2J\u{fffd}");
        let endless = vec![0; LARGEST + 1];
        assert!(decode(&endless).unwrap_err().to_string().contains("16 MiB"));
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let long = "x".repeat(3 << 20);
        let mut all: Vec<Source> = (0..6).map(|_| source("long.c", &long)).collect();
        all.push(source("short.c", "nop"));
        let mut image = Image {
            sections: vec![section(&all)],
            symbols: Vec::new(),
        };
        fit(&mut image).unwrap();
        let read = read(&image).unwrap();
        assert_eq!(read.len(), 7);
        assert!(read[0].functions[0].diff.is_none());
        assert_eq!(read[6], all[6]);
        // One file alone.
        let alone = section(&[source("long.c", &"x".repeat(9 << 20))]);
        assert!(decode(&alone.data).unwrap()[0].functions[0].diff.is_none());
    }
}
