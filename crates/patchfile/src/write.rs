//! Writing an image as an ELF relocatable object.

use object::Endianness;
use object::elf::{
    ELFOSABI_NONE, EM_X86_64, ET_REL, FileFlags, RelocationType, STB_LOCAL, SectionFlags,
    SectionType, SymbolInfo, SymbolOther, SymbolSection,
};
use object::write::elf::{FileHeader, Rel, SectionHeader, Sym, Writer};

use crate::Error;
use crate::elf::{Image, SHF_INFO_LINK, SHF_RELA_LIVEPATCH, SHN_LIVEPATCH, SHT_NOBITS, SymPlace};
use crate::read::RELA_PREFIX;

/// A section of relocations to be written.
struct RelaSection<'i> {
    name: String,
    flags: u64,
    section: usize,
    relas: Vec<&'i crate::elf::Rela>,
    offset: u64,
}

/// Writes the sections and symbols that `keep` says, with relocations by the object that they belong to: `objects`
/// gives for each symbol the name of its object if it is SHN_LIVEPATCH. The section table comes last, so that every
/// truncation is seen.
///
/// # Errors
/// [`Error::Write`].
pub fn write(
    image: &Image<'_>,
    keep_section: &[bool],
    keep_symbol: &[bool],
    objects: &[Option<String>],
) -> Result<Vec<u8>, Error> {
    let failed = |e: object::write::Error| Error::Write(e.to_string());
    let kept = |keep: &[bool], i: usize| keep.get(i).copied().unwrap_or(false);
    // New numbers: the null section stays 0; local symbols come first.
    let sections: Vec<usize> = (1..image.sections.len())
        .filter(|&i| kept(keep_section, i))
        .collect();
    let mut symbols: Vec<usize> = (1..image.symbols.len())
        .filter(|&i| kept(keep_symbol, i))
        .collect();
    let is_local = |i: &usize| image.symbols.get(*i).is_some_and(|s| s.bind == STB_LOCAL.0);
    symbols.sort_by_key(|i| !is_local(i));
    let locals = symbols.iter().filter(|i| is_local(i)).count();
    let new_section = renumber(&sections, image.sections.len());
    let new_symbol = renumber(&symbols, image.symbols.len());
    let mut relas = relocation_sections(image, &sections, keep_symbol, objects);

    let mut bytes = Vec::new();
    let mut writer = Writer::new_single_phase(Endianness::Little, true, &mut bytes);
    let header = FileHeader {
        os_abi: ELFOSABI_NONE,
        abi_version: 0,
        e_type: ET_REL,
        e_machine: EM_X86_64,
        e_entry: 0,
        e_flags: FileFlags(0),
    };
    writer.write_file_header(&header).map_err(failed)?;

    let mut offsets = Vec::new();
    for section in sections.iter().filter_map(|&i| image.sections.get(i)) {
        offsets.push(writer.write_align(section.align.min(4096)));
        if section.sh_type != SHT_NOBITS {
            writer.write(&section.data);
        }
    }
    for section in &mut relas {
        section.offset = writer.write_align_relocation();
        for rela in &section.relas {
            writer.write_relocation(
                true,
                &Rel {
                    r_offset: rela.offset,
                    r_sym: number(&new_symbol, rela.symbol),
                    r_type: RelocationType(rela.r_type),
                    r_addend: rela.addend,
                },
            );
        }
    }
    writer.write_null_symbol();
    for symbol in symbols.iter().filter_map(|&i| image.symbols.get(i)) {
        let st_name = (!symbol.name.is_empty()).then(|| writer.add_string(symbol.name.as_bytes()));
        let (section, shndx) = match symbol.place {
            SymPlace::Section(section) => (Some(number(&new_section, section)), 0),
            SymPlace::Livepatch => (None, SHN_LIVEPATCH),
            SymPlace::Absolute => (None, object::elf::SHN_ABS.0),
            SymPlace::Undefined => (None, 0),
            SymPlace::Common => (None, object::elf::SHN_COMMON.0),
        };
        let st_name = writer.string_offset(st_name);
        writer.write_symbol(&Sym {
            section,
            st_name,
            st_info: SymbolInfo(symbol.bind << 4 | symbol.kind & 0xf),
            st_other: SymbolOther(symbol.other),
            st_shndx: SymbolSection(shndx),
            st_value: symbol.value,
            st_size: symbol.size,
        });
    }
    writer.write_strtab().map_err(failed)?;
    let names: Vec<_> = sections
        .iter()
        .filter_map(|&i| image.sections.get(i))
        .map(|s| writer.add_section_name(s.name.as_bytes()))
        .collect();
    let rela_names: Vec<_> = relas
        .iter()
        .map(|s| writer.add_section_name(s.name.as_bytes()))
        .collect();
    writer.write_shstrtab().map_err(failed)?;

    // The symbol and string tables follow the kept sections and their relocations.
    let symtab = 1 + sections.len() + relas.len() + 1;
    writer.write_null_section_header();
    let kept_sections = sections.iter().filter_map(|&i| image.sections.get(i));
    for ((section, offset), name) in kept_sections.zip(offsets).zip(names) {
        let sh_name = writer.section_name_offset(Some(name));
        writer.write_section_header(&SectionHeader {
            sh_name,
            sh_type: SectionType(section.sh_type),
            sh_flags: SectionFlags(section.flags),
            sh_addr: 0,
            sh_offset: offset,
            sh_size: section.size,
            sh_link: number(&new_section, section.link as usize),
            sh_info: 0,
            sh_addralign: section.align,
            sh_entsize: section.entsize,
        });
    }
    for (section, name) in relas.iter().zip(rela_names) {
        let sh_name = writer.section_name_offset(Some(name));
        writer.write_section_header(&SectionHeader {
            sh_name,
            sh_type: object::elf::SHT_RELA,
            sh_flags: SectionFlags(section.flags),
            sh_addr: 0,
            sh_offset: section.offset,
            sh_size: section.relas.len() as u64 * 24,
            sh_link: symtab as u32,
            sh_info: number(&new_section, section.section),
            sh_addralign: 8,
            sh_entsize: 24,
        });
    }
    writer.write_strtab_section_header();
    writer.write_symtab_section_header(locals as u32 + 1);
    writer.write_shstrtab_section_header();
    // The header again, now that it is known where the section table is.
    let mut head = Vec::new();
    writer.write_file_header_to(&mut head).map_err(failed)?;
    drop(writer);
    if let Some(place) = bytes.get_mut(..head.len()) {
        place.copy_from_slice(&head);
    }
    Ok(bytes)
}

fn renumber(kept: &[usize], count: usize) -> Vec<u32> {
    let mut numbers = vec![0; count];
    for (new, &old) in kept.iter().enumerate() {
        if let Some(number) = numbers.get_mut(old) {
            *number = new as u32 + 1;
        }
    }
    numbers
}

fn number(numbers: &[u32], old: usize) -> u32 {
    numbers.get(old).copied().unwrap_or(0)
}

/// Splits each section's relocations: those of the patch itself in `.rela<section>`, and one `.klp.rela` per object.
fn relocation_sections<'i>(
    image: &'i Image<'_>,
    sections: &[usize],
    keep_symbol: &[bool],
    objects: &[Option<String>],
) -> Vec<RelaSection<'i>> {
    let mut out: Vec<RelaSection<'i>> = Vec::new();
    for &number in sections {
        let Some(section) = image.sections.get(number) else {
            continue;
        };
        let first = out.len();
        for rela in &section.relas {
            // Only debug information refers to symbols that were left out.
            if rela.symbol != 0 && !keep_symbol.get(rela.symbol).copied().unwrap_or(false) {
                continue;
            }
            let object = objects.get(rela.symbol).and_then(Option::as_deref);
            let object = object.filter(|_| section.is_alloc());
            let (name, flags) = match object {
                None => (format!(".rela{}", section.name), SHF_INFO_LINK),
                Some(object) => {
                    let short = section.name.strip_prefix('.').unwrap_or(&section.name);
                    let flags = SHF_INFO_LINK | SHF_RELA_LIVEPATCH | crate::elf::SHF_ALLOC;
                    (format!("{RELA_PREFIX}{object}.{short}"), flags)
                }
            };
            let found = out.iter_mut().skip(first).find(|s| s.name == name);
            match found {
                Some(found) => found.relas.push(rela),
                None => out.push(RelaSection {
                    name,
                    flags,
                    section: number,
                    relas: vec![rela],
                    offset: 0,
                }),
            }
        }
    }
    out
}
