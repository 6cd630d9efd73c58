//! What each reader is asked, and what it promises.

use std::path::Path;

use livegraft_build::compare::{self, Options, compare, extract};
use livegraft_build::emit;
use livegraft_build::place::{self, Object};
use livegraft_patchfile::elf::Image;
use livegraft_patchfile::{Info, Input, Patch, Place, Target, pack, relocation_width, seal};
use livegraft_process::symbolize;

use crate::Reader;

/// All of them.
pub static READERS: [Reader; 8] = [
    Reader {
        name: "object",
        also: Some("compare"),
        read: object,
    },
    Reader {
        name: "compare",
        also: None,
        read: compare_two,
    },
    Reader {
        name: "extract",
        also: Some("compare"),
        read: extract_two,
    },
    Reader {
        name: "place",
        also: None,
        read: place,
    },
    Reader {
        name: "identical",
        also: None,
        read: identical,
    },
    Reader {
        name: "patch",
        also: None,
        read: patch,
    },
    Reader {
        name: "pack",
        also: None,
        read: pack_one,
    },
    Reader {
        name: "symbolize",
        also: None,
        read: symbolize,
    },
];

/// A message is one sentence for a person to read, however long the names in the file are.
fn sentence(error: &dyn std::fmt::Display) {
    let text = error.to_string();
    assert!(
        !text.is_empty() && text.len() < 1 << 16,
        "{} bytes of message",
        text.len()
    );
}

/// One object, compared with itself.
fn object(parts: &[&[u8]]) {
    let [object, ..] = parts else { return };
    match compare(object, object, &Options::default()) {
        Ok(comparison) => {
            Image::read(object).expect("what is compared can be read");
            let news = |f: &compare::Function| f.old_size.is_none() || f.new_size.is_none();
            assert!(!comparison.functions.iter().any(news));
        }
        Err(error) => sentence(&error),
    }
}

/// An original and a patched object.
fn compare_two(parts: &[&[u8]]) {
    let [original, patched, ..] = parts else {
        return;
    };
    match compare(original, patched, &Options::default()) {
        Ok(comparison) => {
            let texts = comparison.refusals.iter().map(|refusal| &refusal.reason);
            texts.for_each(|reason| sentence(&reason));
            let whys = comparison.functions.iter().flat_map(|f| &f.why);
            whys.for_each(|why| sentence(&why));
        }
        Err(error) => sentence(&error),
    }
}

/// The same, through to the object that is packed: all that can be taken on is.
fn extract_two(parts: &[&[u8]]) {
    let [original, patched, ..] = parts else {
        return;
    };
    let kinds = [
        "data",
        "struct",
        "never-returns",
        "static",
        "constructor",
        "section",
        "thread-local",
        "ifunc",
        "alias",
    ];
    let options = Options {
        allow: kinds.map(str::to_owned).to_vec(),
        with_callers: vec!["helper".to_owned()],
    };
    let Ok(comparison) = compare(original, patched, &options) else {
        return;
    };
    match extract(&comparison) {
        Ok(made) => {
            Image::read(&made).expect("what is extracted can be read");
            let input = Input {
                path: Path::new("x"),
                bytes: &made,
            };
            if let Err(error) = emit::needs(&input) {
                sentence(&error);
            }
        }
        Err(error) => sentence(&error),
    }
}

/// A linked program and objects of it.
fn place(parts: &[&[u8]]) {
    let [target, objects @ ..] = parts else {
        return;
    };
    let objects: Vec<Object<'_>> = objects
        .iter()
        .map(|bytes| Object { name: "x.o", bytes })
        .collect();
    match place::objects(target, &objects) {
        Ok(placement) => {
            for number in 0..objects.len() {
                for (name, located) in placement.located(number) {
                    let fingerprint = placement.fingerprint(&located);
                    assert!(fingerprint.is_none_or(|f| f.size == located.size));
                    if let Ok(name) = std::str::from_utf8(name) {
                        let _ = placement.find(number, name);
                    }
                }
                for symbol in 0..64 {
                    if let Err(refusal) = placement.at(number, symbol) {
                        sentence(&refusal);
                    }
                }
            }
            let _ = placement.recovered();
        }
        Err(refusal) => sentence(&refusal),
    }
}

/// A linked program, and the same one with its symbols.
fn identical(parts: &[&[u8]]) {
    let [target, linked, ..] = parts else {
        return;
    };
    match place::identical(target, linked) {
        Ok(symbols) => {
            for symbol in symbols.iter() {
                let _ = symbols.find(symbol.file, symbol.name);
                let _ = symbols.fingerprint(&symbol.located);
            }
            let _ = symbols.recovered();
        }
        Err(difference) => sentence(&difference),
    }
}

/// A patch file, with a checksum that is right and as it came.
fn patch(parts: &[&[u8]]) {
    let [bytes, ..] = parts else { return };
    let mut sealed = bytes.to_vec();
    let sealed = seal(&mut sealed).is_ok().then_some(sealed);
    for bytes in [Some(bytes.to_vec()), sealed].into_iter().flatten() {
        match Patch::parse(&bytes) {
            Ok(patch) => {
                assert_valid(&patch);
                let _ = patch.unsupported();
                let _ = Info::new(&patch).to_string();
            }
            Err(error) => sentence(&error),
        }
    }
}

/// The promises of [`Patch`] that whoever loads it relies on.
pub fn assert_valid(patch: &Patch) {
    for section in &patch.sections {
        assert!(section.align.is_power_of_two() && section.align <= 4096);
        assert!(section.data.is_empty() || section.data.len() as u64 == section.size);
        assert!(!(section.write && section.exec));
    }
    for symbol in &patch.symbols {
        if let Place::Section(section, offset) = symbol.place {
            assert!(offset + symbol.size <= patch.sections[section].size);
        }
    }
    for relocation in &patch.relocations {
        let width = relocation_width(relocation.r_type).expect("a type that is known");
        let end = relocation.offset + width;
        assert!(end <= patch.sections[relocation.section].data.len() as u64);
        assert!(patch.symbols[relocation.symbol].place != Place::NotLoaded);
    }
    assert!(!patch.objects.is_empty());
    for func in patch.objects.iter().flat_map(|object| &object.funcs) {
        let Place::Section(section, offset) = patch.symbols[func.new_func].place else {
            panic!("{} has no code", func.old_name);
        };
        assert!(patch.sections[section].exec && offset < patch.sections[section].size);
    }
    for object in &patch.objects {
        assert!(!object.builds.is_empty());
        for build in &object.builds {
            assert!(build.fingerprints.len() == object.funcs.len());
            assert!(build.fingerprints.iter().all(|f| f.size > 0));
            let fits = |s: &livegraft_patchfile::Recovered| s.svma.checked_add(s.size).is_some();
            assert!(build.symbols.iter().all(fits));
        }
    }
}

/// An object with klp structs and its target; what is made of them is a patch.
fn pack_one(parts: &[&[u8]]) {
    let [object, target, ..] = parts else {
        return;
    };
    let path = Path::new("x");
    let input = Input {
        path,
        bytes: object,
    };
    let target = Target {
        path,
        bytes: target,
        debug: None,
        symbols: None,
    };
    match pack(&[input], &[target]) {
        Ok(made) => assert_valid(&Patch::parse(&made).expect("what is packed can be read")),
        Err(error) => sentence(&error),
    }
}

/// The sections of [`DEBUG`], and behind them addresses.
fn symbolize(parts: &[&[u8]]) {
    let Some((sections, [addresses, ..])) = parts.split_at_checked(DEBUG.len()) else {
        return;
    };
    let addresses: Vec<u64> = addresses
        .chunks_exact(8)
        .take(32)
        .filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes))
        .collect();
    let section = |name: &'static str| {
        let known = DEBUG.iter().position(|known| *known == name);
        known.map(|at| sections[at].to_vec()).unwrap_or_default()
    };
    symbolize::functions_at(section, &addresses);
}

/// What the input for `symbolize` consists of.
pub const DEBUG: [&str; 10] = [
    ".debug_info",
    ".debug_abbrev",
    ".debug_line",
    ".debug_str",
    ".debug_line_str",
    ".debug_ranges",
    ".debug_rnglists",
    ".debug_addr",
    ".debug_aranges",
    ".debug_str_offsets",
];
