//! Why a section is not where it should be, in words: the first instruction or the data that differs.

use std::collections::HashMap;
use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, Formatter as _, GasFormatter, Instruction};
use object::elf;

use super::follow::{Cause, Contradiction, piece};
use super::linked::Linked;
use super::refusal::SideBySide;
use super::relocatable::{Form, Kind, Place, Relocatable, Relocation, Section, Symbol};
use super::system::System;
use super::{Refusal, search};

/// Anchors of a section that is looked for in pieces.
const ANCHORS: usize = 64;
/// What part of its section's size code that was only shifted may have moved.
const SHIFT: u64 = 4;
/// A difference in data is followed over this many references.
const DEPTH: usize = 4;

/// What differs if a part lies at `base`, from an offset on.
pub(super) fn at(
    system: &System<'_, '_>,
    part: u32,
    (base, from): (u64, usize),
) -> Option<Refusal> {
    follow(system, part, (base, from), String::new(), DEPTH)
}

fn follow(
    system: &System<'_, '_>,
    number: u32,
    (base, from): (u64, usize),
    used_by: String,
    depth: usize,
) -> Option<Refusal> {
    let part = system.parts.get(number as usize)?;
    let object = system.objects.get(part.object as usize)?;
    let section = system.section(part)?;
    let runs = system.runs(section, base).unwrap_or_default();
    let byte = search::first_difference(section, runs, from..usize::MAX);
    let contradiction = system.contradiction(number, base);
    let first = contradiction.filter(|c| {
        let offset = c.offset as usize;
        from <= offset && byte.is_none_or(|byte| offset < byte)
    });
    let offset = first.as_ref().map_or(byte, |c| Some(c.offset as usize))?;
    let place = (part.section as usize, offset as u64);
    let symbol = spoken(object, place.0, place.1);
    let deeper = |number, base| {
        let depth = depth.checked_sub(1)?;
        follow(system, number, (base, 0), refers(&symbol), depth)
    };
    match first.as_ref().map(|c| &c.cause) {
        Some(&Cause::Content(number, base)) => {
            if let Some(refusal) = deeper(number, base) {
                return Some(refusal);
            }
        }
        Some(&Cause::Merged(svma, (of, section, at))) => {
            return merged(system, (of, section, at), svma, refers(&symbol));
        }
        _ => {}
    }
    let function = object.symbol_at(place.0, place.1);
    let start = function.map_or(0, |f| f.value.min(place.1));
    if section.kind == Kind::Code {
        let side = side_by_side(system, object, section, (start, offset), base, first)?;
        return Some(Refusal::Code {
            object: object.name.to_owned(),
            function: symbol,
            svma: base.wrapping_add(start),
            side: Box::new(side),
        });
    }
    let window = |bytes: &[u8]| hex(bytes.get(offset..).unwrap_or_default());
    let contents = match first {
        Some(contradiction) => said(system, object, section, &contradiction, None),
        None if runs.is_empty() => "what is there is not as it was built".to_owned(),
        None => format!(
            "{} was built, {} is there",
            window(section.data),
            window(runs)
        ),
    };
    Some(Refusal::Data {
        object: object.name.to_owned(),
        symbol,
        svma: base.wrapping_add(place.1),
        used_by,
        contents,
    })
}

fn refers(symbol: &str) -> String {
    format!(", to which `{symbol}` refers,")
}

fn merged(
    system: &System<'_, '_>,
    (object, section, offset): (u32, u32, u64),
    svma: u64,
    used_by: String,
) -> Option<Refusal> {
    let object = system.objects.get(object as usize)?;
    let section_of = object.sections.get(section as usize)?;
    let built = piece(section_of, offset)?;
    let runs = system.target.from(svma).unwrap_or_default();
    let runs = runs.get(..built.len().min(runs.len())).unwrap_or(runs);
    let text = matches!(section_of.kind, Kind::Merged(0, 1));
    let show = |bytes: &[u8]| {
        if text {
            let end = memchr::memchr(0, bytes).unwrap_or(bytes.len()).min(64);
            format!(
                "{:?}",
                String::from_utf8_lossy(bytes.get(..end).unwrap_or(bytes))
            )
        } else {
            hex(bytes)
        }
    };
    let symbol = match text {
        true => "a string".to_owned(),
        false => "a constant".to_owned(),
    };
    Some(Refusal::Data {
        object: object.name.to_owned(),
        symbol,
        svma,
        used_by,
        contents: format!("{} was built, {} is there", show(built), show(runs)),
    })
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let shown: Vec<String> = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
    shown.join(" ")
}

/// How a place in a section is called.
pub(super) fn spoken(object: &Relocatable<'_>, section: usize, offset: u64) -> String {
    let symbol = object.symbol_at(section, offset);
    let name = symbol.map(|symbol| symbol.name).or_else(|| {
        let section = object.sections.get(section)?;
        Some(section.name)
    });
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

/// What a contradiction says, as a clause. `end`: where the instruction ends that has the relocation.
fn said(
    system: &System<'_, '_>,
    object: &Relocatable<'_>,
    section: &Section<'_>,
    contradiction: &Contradiction,
    end: Option<usize>,
) -> String {
    let at = |r: &&Relocation| r.offset == contradiction.offset;
    let relocation = section.relocations.iter().find(at);
    let beyond = relocation.map_or(0, |r| behind(object, r, end));
    let symbol = relocation.map_or(String::new(), |r| target_of(object, r, end));
    match &contradiction.cause {
        Cause::Form => format!("no linker makes this of the reference to `{symbol}`"),
        Cause::Import(name) => {
            format!("it refers to `{name}` of a library, and was built to refer to `{symbol}`")
        }
        Cause::Elsewhere { is, known } => format!(
            "it refers to {:#x}, and `{symbol}` is at {:#x}",
            is.wrapping_add_signed(beyond),
            known.wrapping_add_signed(beyond)
        ),
        Cause::Impossible => format!("it refers to what can't be `{symbol}`"),
        Cause::Content(part, base) => {
            let part = system.parts.get(*part as usize);
            let place = part.and_then(|part| {
                let object = system.objects.get(part.object as usize)?;
                Some(spoken(object, part.section as usize, 0))
            });
            let place = place.unwrap_or(symbol);
            format!("it refers to {base:#x}, where `{place}` is not")
        }
        Cause::Merged(svma, _) => format!("it refers to another string or constant, at {svma:#x}"),
    }
}

/// How far beyond its symbol a relocation means, where the symbol is a section's.
fn behind(object: &Relocatable<'_>, relocation: &Relocation, end: Option<usize>) -> i64 {
    let symbol = object.symbols.get(relocation.symbol as usize);
    if symbol.is_none_or(|symbol| !symbol.name.is_empty()) {
        return 0;
    }
    let relative = matches!(relocation.form, Form::Pc32 | Form::Pc64);
    let end = end.filter(|_| relative);
    let field = end.map_or(0, |end| {
        (end as i64).wrapping_sub(i64::from(relocation.offset))
    });
    field.wrapping_add(relocation.addend)
}

/// What a relocation refers to.
fn target_of(object: &Relocatable<'_>, relocation: &Relocation, end: Option<usize>) -> String {
    let Some(symbol) = object.symbols.get(relocation.symbol as usize) else {
        return String::new();
    };
    match object.section_of(symbol) {
        Some((number, _)) if symbol.name.is_empty() => {
            let behind = behind(object, relocation, end);
            spoken(object, number, symbol.value.saturating_add_signed(behind))
        }
        _ => String::from_utf8_lossy(symbol.name).into_owned(),
    }
}

fn side_by_side(
    system: &System<'_, '_>,
    object: &Relocatable<'_>,
    section: &Section<'_>,
    (start, differs): (u64, usize),
    base: u64,
    contradiction: Option<Contradiction>,
) -> Option<SideBySide> {
    let from = usize::try_from(start).ok()?;
    let code_at = system.runs(section, base).unwrap_or_default();
    let code = section.data.get(from..)?;
    let mut decoder = Decoder::with_ip(64, code, base.wrapping_add(start), DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut at = from;
    while decoder.can_decode() {
        at = from.saturating_add(decoder.position());
        decoder.decode_out(&mut instruction);
        if from.saturating_add(decoder.position()) > differs {
            break;
        }
    }
    let end = at.saturating_add(instruction.len());
    let inside = |offset: u32| (at..end).contains(&(offset as usize));
    let relocation = section.relocations.iter().find(|r| inside(r.offset));
    let mut built = text(&instruction);
    if let Some(relocation) = relocation {
        let symbol = target_of(object, relocation, Some(end));
        built = format!("{built}  <{symbol}>");
    }
    // Where nothing of the function is, what is there says nothing.
    let size = object
        .symbols
        .iter()
        .find(|s| s.value == start && s.kind == elf::STT_FUNC && is_in(object, s, section))
        .map_or(0, |function| usize::try_from(function.size).unwrap_or(0));
    let (same, all) = alike(section, code_at, from..from.saturating_add(size));
    let other = at == from && contradiction.is_none() && same.saturating_mul(4) < all;
    let runs = if other {
        "(no code that is like it)".to_owned()
    } else {
        instruction_at(system.target, base.wrapping_add(at as u64))
    };
    Some(SideBySide {
        offset: (at as u64).saturating_sub(start),
        built,
        runs,
        because: contradiction.map(|c| said(system, object, section, &c, Some(end))),
    })
}

fn is_in(object: &Relocatable<'_>, symbol: &Symbol<'_>, section: &Section<'_>) -> bool {
    let defining = object.section_of(symbol);
    defining.is_some_and(|(_, defining)| std::ptr::eq(defining, section))
}

/// The text of the instruction at an address of the target.
pub(super) fn instruction_at(target: &Linked<'_>, svma: u64) -> String {
    match target.from(svma) {
        Some(code) => {
            let code = code.get(..code.len().min(16)).unwrap_or(code);
            text(&Decoder::with_ip(64, code, svma, DecoderOptions::NONE).decode())
        }
        None => "nothing".to_owned(),
    }
}

/// The text of the first instruction of some code.
pub(super) fn text(instruction: &Instruction) -> String {
    if instruction.is_invalid() {
        return "(no instruction)".to_owned();
    }
    let mut out = String::new();
    let mut formatter = GasFormatter::new();
    formatter
        .options_mut()
        .set_space_after_operand_separator(false);
    formatter.format(instruction, &mut out);
    out
}

/// Whether a part that should be at `base` is like what is there, or like code near by.
pub(super) fn is_like(system: &System<'_, '_>, number: u32, base: u64) -> bool {
    let Some(section) = system
        .parts
        .get(number as usize)
        .and_then(|part| system.section(part))
    else {
        return false;
    };
    let runs = system.runs(section, base).unwrap_or_default();
    let (same, all) = alike(section, runs, 0..usize::MAX);
    same.saturating_mul(2) > all || resembling(system, &[number]).contains_key(&number)
}

/// How many fixed bytes of a range are there, and how many there are.
fn alike(section: &Section<'_>, runs: &[u8], within: Range<usize>) -> (usize, usize) {
    let (mut same, mut all) = (0usize, 0usize);
    for fixed in section.fixed() {
        let fixed = fixed.start.max(within.start)..fixed.end.min(within.end);
        let built = section.data.get(fixed.clone()).unwrap_or_default();
        let runs = runs.get(fixed).unwrap_or_default();
        all = all.saturating_add(built.len());
        same = same.saturating_add(built.iter().zip(runs).filter(|(a, b)| a == b).count());
    }
    (same, all)
}

/// For each part that was not found: the place in the target that is most like it, where most of it is, and the offset
/// of the first function that is not.
pub(super) fn resembling(system: &System<'_, '_>, missing: &[u32]) -> HashMap<u32, (u64, usize)> {
    if missing.is_empty() {
        return HashMap::new();
    }
    let census = search::Census::of(system.target);
    let mut anchors = Vec::new();
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for &number in missing {
        let part = system.parts.get(number as usize);
        if let Some(section) = part.and_then(|part| system.section(part)) {
            let looked = census.anchors(section, number, ANCHORS, &mut anchors);
            counts.insert(number, looked);
        }
    }
    let mut votes: HashMap<(u32, u64), usize> = HashMap::new();
    search::find(system.target, anchors, |owner, base| {
        let count = votes.entry((owner, base)).or_default();
        *count = count.saturating_add(1);
        votes.len() < 1 << 20
    });
    let mut by_part: HashMap<u32, Vec<(u64, usize)>> = HashMap::new();
    for ((owner, base), count) in votes {
        by_part.entry(owner).or_default().push((base, count));
    }
    let best = by_part.into_iter().filter_map(|(number, mut places)| {
        places.sort_unstable();
        let &(top, _) = places.iter().max_by_key(|(_, count)| *count)?;
        let section = system.section(system.parts.get(number as usize)?)?;
        let near = |&&(base, _): &&(u64, usize)| base.abs_diff(top) <= section.size / SHIFT;
        let cluster = || places.iter().filter(near);
        let found: usize = cluster().map(|(_, count)| count).sum();
        let all = counts.get(&number).copied().unwrap_or(0);
        if all < 4 || found.saturating_mul(2) < all {
            return None;
        }
        let bases: Vec<u64> = cluster().map(|(base, _)| *base).collect();
        Some((number, first_changed(system, number, top, &bases)?))
    });
    best.collect()
}

/// Functions may have moved by different amounts. The first that is at none of the bases is the one that was changed,
/// or lies behind what was put in; it is compared where it would follow the one before.
fn first_changed(
    system: &System<'_, '_>,
    number: u32,
    top: u64,
    bases: &[u64],
) -> Option<(u64, usize)> {
    let part = system.parts.get(number as usize)?;
    let section = system.section(part)?;
    let object = system.objects.get(part.object as usize)?;
    let mut functions: Vec<(usize, usize)> = object
        .symbols
        .iter()
        .filter(|s| s.kind == elf::STT_FUNC && s.place == Place::Section(part.section))
        .filter_map(|s| {
            let start = usize::try_from(s.value).ok()?;
            Some((start, start.checked_add(usize::try_from(s.size).ok()?)?))
        })
        .collect();
    functions.sort_unstable();
    let is_at = |base: u64, (start, end): (usize, usize)| {
        let runs = system.target.from(base).unwrap_or_default();
        search::first_difference(section, runs, start..end).is_none()
    };
    let mut before = None;
    for function in functions {
        let mut tried = before.into_iter().chain([top]).chain(bases.iter().copied());
        match tried.find(|base| is_at(*base, function)) {
            Some(base) => before = Some(base),
            // Functions begin at multiples of the alignment wherever they have moved.
            None => {
                let base = before.unwrap_or(top) & !section.align.wrapping_sub(1);
                return Some((base, function.0));
            }
        }
    }
    Some((top, 0))
}
