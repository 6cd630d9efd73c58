//! The code of a loaded patch for other tools, which know nothing of memory that no file is mapped to.

use std::ops::Range;

/// Where a patch lies in a process, and what its functions are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchCode {
    /// Its code.
    pub text: Range<u64>,
    /// Name and place of its functions, in the order of their addresses.
    pub functions: Vec<(String, Range<u64>)>,
    /// Address and contents of its call frame information.
    pub eh_frame: Option<(u64, Vec<u8>)>,
}

/// A map for perf, which looks for it at /tmp/perf-PID.map: a line for each function, with start and size in hexadecimal.
pub fn perf_map(code: &PatchCode) -> String {
    let line = |(name, range): &(String, Range<u64>)| {
        let size = range.end.saturating_sub(range.start);
        format!("{:x} {size:x} {name}\n", range.start)
    };
    code.functions.iter().map(line).collect()
}

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const NOBITS: u32 = 8;
const ALLOC: u64 = 2;
const EXEC: u64 = 4;
const HEADER: usize = 64;
/// STB_GLOBAL, STT_FUNC.
const FUNCTION: u8 = 0x12;
const TEXT_INDEX: u16 = 1;
/// Name, type, flags, address, contents, size, link, info, alignment, size of an entry.
type Section<'a> = (&'a str, u32, u64, u64, &'a [u8], u64, u32, u32, u64, u64);

/// An ELF file for gdb's `add-symbol-file`: symbols and call frame information at the addresses where they are.
pub fn elf(code: &PatchCode) -> Vec<u8> {
    let (mut symbols, mut names) = (vec![0u8; 24], vec![0u8]);
    for (name, range) in &code.functions {
        symbols.extend((names.len() as u32).to_le_bytes());
        symbols.extend([FUNCTION, 0]);
        symbols.extend(TEXT_INDEX.to_le_bytes());
        symbols.extend(range.start.to_le_bytes());
        symbols.extend(range.end.saturating_sub(range.start).to_le_bytes());
        names.extend(name.bytes().filter(|&byte| byte != 0));
        names.push(0);
    }
    let (frames_at, frames) = code
        .eh_frame
        .as_ref()
        .map_or((0, &[][..]), |(at, bytes)| (*at, bytes.as_slice()));
    let text_size = code.text.end.saturating_sub(code.text.start);
    let mut sections: Vec<Section<'_>> = Vec::from([
        ("", 0, 0, 0, &[][..], 0, 0, 0, 0, 0),
        (
            ".text",
            NOBITS,
            ALLOC | EXEC,
            code.text.start,
            &[][..],
            text_size,
            0,
            0,
            16,
            0,
        ),
        (
            ".eh_frame",
            PROGBITS,
            ALLOC,
            frames_at,
            frames,
            frames.len() as u64,
            0,
            0,
            8,
            0,
        ),
        (
            ".symtab",
            SYMTAB,
            0,
            0,
            &symbols,
            symbols.len() as u64,
            4,
            1,
            8,
            24,
        ),
        (
            ".strtab",
            STRTAB,
            0,
            0,
            &names,
            names.len() as u64,
            0,
            0,
            1,
            0,
        ),
    ]);
    let own = ".shstrtab";
    let mut section_names = Vec::new();
    for name in sections.iter().map(|section| section.0).chain([own]) {
        section_names.extend(name.bytes());
        section_names.push(0);
    }
    let size = section_names.len() as u64;
    sections.push((own, STRTAB, 0, 0, &section_names, size, 0, 0, 1, 0));

    let mut file = vec![0u8; HEADER];
    let mut headers = Vec::new();
    let mut name_at = 0u32;
    for (name, kind, flags, address, contents, size, link, info, align, entry) in &sections {
        file.resize(file.len().next_multiple_of(8), 0);
        headers.extend(name_at.to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [*flags, *address, file.len() as u64, *size] {
            headers.extend(word.to_le_bytes());
        }
        headers.extend(link.to_le_bytes());
        headers.extend(info.to_le_bytes());
        headers.extend(align.to_le_bytes());
        headers.extend(entry.to_le_bytes());
        file.extend(*contents);
        name_at = name_at.saturating_add(name.len() as u32).saturating_add(1);
    }
    file.resize(file.len().next_multiple_of(8), 0);
    let table = file.len() as u64;
    file.extend(headers);
    // 64-bit, little-endian, version 1, System V; ET_EXEC, EM_X86_64, version 1.
    let mut header = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    for word in [0, 0, table] {
        header.extend(u64::to_le_bytes(word));
    }
    header.extend([0; 4]);
    let count = sections.len() as u16;
    for half in [HEADER as u16, 56, 0, 64, count, count.saturating_sub(1)] {
        header.extend(half.to_le_bytes());
    }
    if let Some(begin) = file.get_mut(..header.len()) {
        begin.copy_from_slice(&header);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSection, ObjectSymbol};

    fn code() -> PatchCode {
        PatchCode {
            text: 0x1000..0x3000,
            functions: vec![
                ("one".into(), 0x1000..0x1010),
                ("two".into(), 0x1020..0x1025),
            ],
            eh_frame: Some((0x4000, vec![1, 2, 3, 4])),
        }
    }

    #[test]
    fn other_readers_find_what_is_in_it() {
        let bytes = elf(&code());
        let file = object::File::parse(&*bytes).unwrap();
        let symbols: Vec<(String, u64, u64)> = file
            .symbols()
            .map(|s| (s.name().unwrap().to_owned(), s.address(), s.size()))
            .filter(|symbol| !symbol.0.is_empty())
            .collect();
        let expected = [
            ("one".to_owned(), 0x1000, 16),
            ("two".to_owned(), 0x1020, 5),
        ];
        assert_eq!(symbols, expected);
        let frames = file.section_by_name(".eh_frame").unwrap();
        assert_eq!(
            (frames.address(), frames.data().unwrap()),
            (0x4000, &[1, 2, 3, 4][..])
        );
        let text = file.section_by_name(".text").unwrap();
        assert_eq!((text.address(), text.size()), (0x1000, 0x2000));
    }

    #[test]
    fn a_map_has_a_line_for_each() {
        assert_eq!(perf_map(&code()), "1000 10 one\n1020 5 two\n");
    }
}
