//! What a patch file says, as plain data: the types that the reader makes and the loader takes.

use std::sync::Arc;

use crate::SymbolKind;

/// The name that stands for the executable in `.klp.sym.` and `.klp.rela.` names (`klp_object.name == NULL`; the
/// kernel's `vmlinux`).
pub const EXECUTABLE: &str = "exe";

/// A patch, read and checked: every index in it is valid, every range lies in its section.
#[derive(Debug, Clone)]
pub struct Patch {
    /// Version of the livegraft note.
    pub format_version: u32,
    /// SHA-256 of the whole file: two loads of the same file are the same patch.
    pub digest: [u8; 32],
    /// `klp_patch.replace`.
    pub replace: bool,
    /// `klp_patch.immediate`.
    pub immediate: bool,
    /// `klp_patch.states`: (id, version).
    pub states: Vec<(u64, u32)>,
    /// `klp_patch.objs`.
    pub objects: Vec<Object>,
    /// The sections that are loaded (SHF_ALLOC), metadata and notes left out.
    pub sections: Vec<Section>,
    /// The symbol table; relocations and funcs index it.
    pub symbols: Vec<Symbol>,
    /// All relocations of the loaded sections, plain and `.klp.rela`.
    pub relocations: Vec<Relocation>,
}

/// `klp_object`: one ELF object of the target that the patch changes.
#[derive(Debug, Clone)]
pub struct Object {
    /// `None` is the executable, else a soname such as `libfoo.so.1`.
    pub name: Option<String>,
    /// The builds of the object that the patch was packed against, at least one, each with another build-id.
    pub builds: Vec<Build>,
    /// `klp_object.funcs`.
    pub funcs: Vec<Func>,
    /// Which of the four callbacks are set, by their field name in C (`pre_patch`, ...).
    pub callbacks: Vec<&'static str>,
}

/// One build of an object: the same source, linked by somebody else or with other flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// NT_GNU_BUILD_ID.
    pub build_id: Vec<u8>,
    /// What must be found running, for each of `Object::funcs`.
    pub fingerprints: Vec<Fingerprint>,
    /// Where symbols are that the build's own symbol tables do not have.
    pub symbols: Vec<Recovered>,
}

/// A symbol of a build without a symbol table, whose address was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// As in `Place::Livepatch`.
    pub name: String,
    /// As in `Place::Livepatch`.
    pub sympos: u64,
    /// What it is.
    pub kind: SymbolKind,
    /// Its address in the file's own numbering; for thread-local variables an offset in the TLS block.
    pub svma: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl Object {
    /// The build with exactly this build-id.
    pub fn build(&self, build_id: &[u8]) -> Option<&Build> {
        self.builds.iter().find(|build| build.build_id == build_id)
    }
}

impl Build {
    /// The recovered symbol that a name and a sympos mean.
    pub fn symbol(&self, name: &str, sympos: u64) -> Option<&Recovered> {
        let same = |symbol: &&Recovered| symbol.sympos == sympos && symbol.name == name;
        self.symbols.iter().find(same)
    }
}

/// `klp_func`: one function to replace.
#[derive(Debug, Clone)]
pub struct Func {
    /// The function's symbol in the target object.
    pub old_name: String,
    /// 0: `old_name` must be unique in the object; N: its Nth occurrence, in the order of the symbol table.
    pub old_sympos: u64,
    /// `klp_func.immediate`.
    pub immediate: bool,
    /// Index into `Patch::symbols` of the replacement; always `Place::Section`.
    pub new_func: usize,
}

/// The code of the original function as `pack` found it in the target's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// Address of the function in the file's own numbering (`st_value`, an svma).
    pub svma: u64,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of those bytes.
    pub sha256: [u8; 32],
}

/// A loaded section.
#[derive(Debug, Clone)]
pub struct Section {
    /// Its name in the file.
    pub name: String,
    /// SHF_WRITE.
    pub write: bool,
    /// SHF_EXECINSTR.
    pub exec: bool,
    /// `sh_addralign`, a power of two, at least 1 and at most 4096 (more is refused).
    pub align: u64,
    /// `sh_size`; larger than `data` for SHT_NOBITS.
    pub size: u64,
    /// The bytes; empty for SHT_NOBITS.
    pub data: Arc<[u8]>,
}

/// Where a symbol's value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a loaded section of the patch: index into `Patch::sections` and offset in it.
    Section(usize, u64),
    /// SHN_ABS.
    Absolute(u64),
    /// SHN_LIVEPATCH: a symbol of one of the patch's objects, static ones included.
    Livepatch {
        /// `None` is the executable.
        object: Option<String>,
        /// The name in that object.
        name: String,
        /// As `Func::old_sympos`.
        sympos: u64,
    },
    /// SHN_UNDEF: as the patched object itself would resolve it.
    Undefined,
    /// In a section that is not loaded (debug information, metadata): nothing loaded may refer to it.
    NotLoaded,
}

/// A symbol of the patch file.
#[derive(Debug, Clone)]
pub struct Symbol {
    /// Its name; empty for section symbols.
    pub name: String,
    /// Where its value comes from.
    pub place: Place,
    /// `st_size`.
    pub size: u64,
    /// STB_WEAK.
    pub weak: bool,
    /// A variable that many files may define and one definition serves (STB_WEAK or STB_GNU_UNIQUE, of default
    /// visibility): C++'s inline and static local variables, templates' static members, vtables, type information.
    pub shared: bool,
    /// STT_FUNC.
    pub func: bool,
    /// STT_TLS.
    pub tls: bool,
}

/// A relocation (RELA) of a loaded section.
#[derive(Debug, Clone, Copy)]
pub struct Relocation {
    /// Index into `Patch::sections` of the section that is changed.
    pub section: usize,
    /// Offset in it.
    pub offset: u64,
    /// R_X86_64_*.
    pub r_type: u32,
    /// Index into `Patch::symbols`.
    pub symbol: usize,
    /// `r_addend`.
    pub addend: i64,
}
