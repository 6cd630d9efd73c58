//! The klp structs of `include/livepatch.h`, read out of an object file by following its relocations.

use std::collections::HashMap;

use object::elf::{STT_FUNC, STT_SECTION};

use crate::Error;
use crate::elf::{Image, Rela, SHT_NOBITS, SymPlace};
use crate::relocation::{self, relocation_name};

/// Where `KLP_PATCH` leaves the pointer to the `struct klp_patch`.
pub(crate) const PATCH_SECTION: &str = ".livegraft.patch";
/// Where `KLP_SYM` leaves its records.
pub(crate) const SYMS_SECTION: &str = ".livegraft.syms";

/// More than any patch has; keeps the work on a hostile file small.
const MAX_OBJECTS: u64 = 4096;
const MAX_FUNCS: usize = 65536;
const MAX_NAME: usize = 4096;

/// `struct klp_patch` and all that it points to.
pub(crate) struct Meta {
    pub objects: Vec<MetaObject>,
    pub states: Vec<(u64, u32)>,
    pub replace: bool,
    pub immediate: bool,
}

/// `struct klp_object`.
pub(crate) struct MetaObject {
    pub name: Option<String>,
    pub funcs: Vec<MetaFunc>,
    pub callbacks: Vec<&'static str>,
}

/// `struct klp_func`.
pub(crate) struct MetaFunc {
    pub old_name: String,
    pub sympos: u64,
    pub immediate: bool,
    /// The replacement's symbol; always in a section of the image.
    pub new_symbol: usize,
}

/// One `KLP_SYM`.
pub(crate) struct Alias {
    /// The symbol that the patch uses.
    pub symbol: usize,
    pub name: String,
    pub object: Option<String>,
    pub sympos: u64,
}

/// A place in a section.
type At = (usize, u64);

/// Reads struct fields of an image.
pub(crate) struct Reader<'i> {
    image: &'i Image<'i>,
    relas: HashMap<At, &'i Rela>,
    /// Function symbols by where they are.
    funcs: HashMap<At, usize>,
}

fn malformed(why: impl Into<String>) -> Error {
    Error::Malformed(why.into())
}

impl<'i> Reader<'i> {
    pub fn new(image: &'i Image<'i>) -> Self {
        let mut relas = HashMap::new();
        for (number, section) in image.sections.iter().enumerate() {
            if section.is_alloc() || section.name == PATCH_SECTION {
                relas.extend(section.relas.iter().map(|r| ((number, r.offset), r)));
            }
        }
        let mut funcs = HashMap::new();
        for (number, symbol) in image.symbols.iter().enumerate() {
            if let (SymPlace::Section(section), true) = (symbol.place, symbol.kind == STT_FUNC.0) {
                funcs.entry((section, symbol.value)).or_insert(number);
            }
        }
        Reader {
            image,
            relas,
            funcs,
        }
    }

    fn bytes<const N: usize>(&self, (section, offset): At) -> Result<[u8; N], Error> {
        let out_of_range = || malformed("a klp struct reaches beyond its section");
        let section = self.image.sections.get(section).ok_or_else(out_of_range)?;
        let end = offset.checked_add(N as u64).ok_or_else(out_of_range)?;
        if end > section.size {
            return Err(out_of_range());
        }
        if section.sh_type == SHT_NOBITS {
            return Ok([0; N]);
        }
        let start = usize::try_from(offset).map_err(|_| out_of_range())?;
        let bytes = section.data.get(start..).and_then(|b| b.first_chunk::<N>());
        bytes.copied().ok_or_else(out_of_range)
    }

    fn number(&self, at: At) -> Result<u64, Error> {
        if self.relas.contains_key(&at) {
            return Err(malformed(
                "a klp struct has an address where a number belongs",
            ));
        }
        Ok(u64::from_le_bytes(self.bytes(at)?))
    }

    fn flag(&self, at: At) -> Result<bool, Error> {
        Ok(self.bytes::<1>(at)? != [0])
    }

    /// The relocation of a pointer field; `None` for NULL.
    fn pointer(&self, at: At) -> Result<Option<&'i Rela>, Error> {
        let value = u64::from_le_bytes(self.bytes(at)?);
        match self.relas.get(&at) {
            Some(rela) if rela.r_type == relocation::ABS64 => Ok(Some(rela)),
            Some(rela) => Err(malformed(format!(
                "a pointer in a klp struct has a relocation of type {}",
                relocation_name(rela.r_type)
            ))),
            None if value == 0 => Ok(None),
            None => Err(malformed("a pointer in a klp struct is a plain number")),
        }
    }

    /// A pointer to something in the image.
    fn place(&self, at: At, what: &str) -> Result<Option<At>, Error> {
        let Some(rela) = self.pointer(at)? else {
            return Ok(None);
        };
        let place = self.image.points_to(rela);
        Ok(Some(place.ok_or_else(|| {
            malformed(format!("{what} is not defined in the patch"))
        })?))
    }

    fn string(&self, at: At, what: &str) -> Result<Option<String>, Error> {
        let Some((section, offset)) = self.place(at, what)? else {
            return Ok(None);
        };
        let text = (|| {
            let section = self.image.sections.get(section)?;
            let bytes = section.data.get(usize::try_from(offset).ok()?..)?;
            let bytes = bytes.get(..bytes.len().min(MAX_NAME))?;
            let end = bytes.iter().position(|&b| b == 0)?;
            Some(std::str::from_utf8(bytes.get(..end)?).ok()?.to_owned())
        })();
        match text {
            Some(text) if !text.is_empty() && !text.contains(char::is_control) => Ok(Some(text)),
            _ => Err(malformed(format!("{what} is not a name"))),
        }
    }

    /// Reads the `struct klp_patch` that `KLP_PATCH` names.
    pub fn meta(&self) -> Result<Meta, Error> {
        let number = self
            .image
            .section_named(PATCH_SECTION)
            .ok_or(Error::NoPatch)?;
        let section = self.image.sections.get(number).ok_or(Error::NoPatch)?;
        match section.size {
            8 => {}
            0 => return Err(Error::NoPatch),
            _ => return Err(Error::SeveralPatches),
        }
        let patch = self
            .place((number, 0), "the struct klp_patch")?
            .ok_or(Error::NoPatch)?;
        let mut objects = Vec::new();
        let mut total = 0usize;
        if let Some(first) = self.place(patch, "klp_patch.objs")? {
            while let Some(object) = self.object(element(first, objects.len(), 48)?)? {
                total = total.saturating_add(object.funcs.len());
                objects.push(object);
                if objects.len() as u64 > MAX_OBJECTS || total > MAX_FUNCS {
                    return Err(malformed(
                        "it has more than 4096 objects or 65536 functions",
                    ));
                }
            }
        }
        if objects.is_empty() {
            return Err(Error::NoObjects);
        }
        let mut states = Vec::new();
        if let Some(first) = self.place(field(patch, 8)?, "klp_patch.states")? {
            loop {
                let at = element(first, states.len(), 24)?;
                let id = self.number(at)?;
                if id == 0 {
                    break;
                }
                states.push((id, u32::from_le_bytes(self.bytes(field(at, 8)?)?)));
            }
        }
        let replace = self.flag(field(patch, 16)?)?;
        let immediate = self.flag(field(patch, 17)?)?;
        Ok(Meta {
            objects,
            states,
            replace,
            immediate,
        })
    }

    /// As `klp_for_each_object`: the end is an element with neither funcs nor name.
    fn object(&self, at: At) -> Result<Option<MetaObject>, Error> {
        let name = self.string(at, "klp_object.name")?;
        let first = self.place(field(at, 8)?, "klp_object.funcs")?;
        if name.is_none() && first.is_none() {
            return Ok(None);
        }
        let mut funcs = Vec::new();
        if let Some(first) = first {
            while let Some(func) = self.func(element(first, funcs.len(), 32)?)? {
                funcs.push(func);
                if funcs.len() > MAX_FUNCS {
                    return Err(malformed("it has more than 65536 functions"));
                }
            }
        }
        let mut callbacks = Vec::new();
        let names = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"];
        for (field_name, offset) in names.into_iter().zip([16, 24, 32, 40]) {
            if self.pointer(field(at, offset)?)?.is_some() {
                callbacks.push(field_name);
            }
        }
        Ok(Some(MetaObject {
            name,
            funcs,
            callbacks,
        }))
    }

    /// As `klp_for_each_func`: the end is an element with nothing in it.
    fn func(&self, at: At) -> Result<Option<MetaFunc>, Error> {
        let old_name = self.string(at, "klp_func.old_name")?;
        let new_func = self.pointer(field(at, 8)?)?;
        let sympos = self.number(field(at, 16)?)?;
        let Some(old_name) = old_name else {
            if new_func.is_none() && sympos == 0 {
                return Ok(None);
            }
            return Err(malformed("a klp_func has no old_name"));
        };
        let immediate = self.flag(field(at, 24)?)?;
        let Some(new_func) = new_func else {
            return Err(Error::NoNewFunc { func: old_name });
        };
        let Some(place) = self.image.points_to(new_func) else {
            let name = self
                .image
                .symbols
                .get(new_func.symbol)
                .map(|s| s.name.clone());
            return Err(Error::NewFuncNotInPatch {
                func: old_name,
                new_func: name.unwrap_or_default(),
            });
        };
        // A static function is named by its section and an offset.
        let named = self.image.symbols.get(new_func.symbol).is_some_and(|s| {
            s.kind != STT_SECTION.0 && s.kind == STT_FUNC.0 && new_func.addend == 0
        });
        let new_symbol = if named {
            Some(new_func.symbol)
        } else {
            self.funcs.get(&place).copied()
        };
        let new_symbol = new_symbol.ok_or_else(|| Error::NewFuncNotFunction {
            func: old_name.clone(),
        })?;
        Ok(Some(MetaFunc {
            old_name,
            sympos,
            immediate,
            new_symbol,
        }))
    }

    /// Reads the records of `KLP_SYM`.
    pub fn aliases(&self) -> Result<Vec<Alias>, Error> {
        let Some(number) = self.image.section_named(SYMS_SECTION) else {
            return Ok(Vec::new());
        };
        let size = self
            .image
            .sections
            .get(number)
            .map_or(0, |s| s.data.len() as u64);
        let mut aliases = Vec::new();
        for offset in (0..size / 32).map(|i| i * 32) {
            let at = (number, offset);
            let missing = || malformed("a KLP_SYM has no symbol");
            let symbol = self.pointer(at)?.ok_or_else(missing)?.symbol;
            let name = self.string(field(at, 8)?, "the symbol of a KLP_SYM")?;
            aliases.push(Alias {
                symbol,
                name: name.ok_or_else(missing)?,
                object: self.string(field(at, 16)?, "the object of a KLP_SYM")?,
                sympos: self.number(field(at, 24)?)?,
            });
        }
        Ok(aliases)
    }
}

fn field((section, offset): At, by: u64) -> Result<At, Error> {
    let offset = offset.checked_add(by);
    Ok((
        section,
        offset.ok_or_else(|| malformed("a klp struct reaches beyond its section"))?,
    ))
}

fn element(first: At, index: usize, size: u64) -> Result<At, Error> {
    field(first, (index as u64).saturating_mul(size))
}
