//! The structs of an object, from its debug information: which of them changed, and of which of those objects live on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gimli::{AttributeValue, Dwarf, Unit};

use super::dwarf::{Entry, Sections, Slice, name, units};
use super::module::{Meaning, Module};

/// More entries than that are taken for damage.
const MOST: usize = 1 << 22;
/// How far a type is followed through pointers and names.
const DEPTH: usize = 12;

/// A struct, union or class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Struct {
    pub size: u64,
    /// Name, place in bits, type.
    members: Vec<(String, u64, String)>,
}

/// The structs of an object by their names, with those of which objects may live on.
#[derive(Debug, Default)]
pub(super) struct Structs {
    defined: BTreeMap<String, Vec<Struct>>,
    live: BTreeSet<String>,
    /// Rust's virtual tables by their names: which function is where.
    tables: BTreeMap<String, Vec<(u64, String)>>,
}

/// What a struct is no more.
pub(super) struct Changed {
    pub name: String,
    pub what: String,
    /// It is a virtual table of Rust.
    pub is_table: bool,
}

/// An entry that describes a type.
#[derive(Debug, Default)]
struct Raw {
    tag: u16,
    name: Option<String>,
    size: Option<u64>,
    to: Option<usize>,
    count: Option<u64>,
    members: Vec<Member>,
    declaration: bool,
    /// What a generic type was made for (Rust).
    parameters: Vec<usize>,
}

#[derive(Debug)]
struct Member {
    name: String,
    bits: u64,
    to: Option<usize>,
}

impl Structs {
    /// `None` without debug information, or where it can't be read.
    pub fn read(module: &Module<'_>) -> Option<Structs> {
        let sections = Sections::read(module)?;
        let dwarf = sections.dwarf()?;
        let mut structs = Structs::default();
        let mut total = 0;
        for unit in units(&dwarf) {
            let found = collect(&dwarf, &unit, &mut total)?;
            for (name, at, size) in &found.tables {
                let slots = slots(module, *at, *size);
                structs.tables.entry(name.clone()).or_insert(slots);
            }
            structs.add(&found.types, found.roots, found.is_rust);
        }
        Some(structs)
    }

    fn add(&mut self, types: &HashMap<usize, Raw>, roots: Vec<usize>, is_rust: bool) {
        let is_struct = |tag: u16| is_struct(tag) || is_rust && tag == ENUMERATION;
        let named = typedefs(types);
        let name_of = |offset: &usize, raw: &Raw| name_of(&named, *offset, raw);
        for (offset, raw) in types
            .iter()
            .filter(|(_, t)| is_struct(t.tag) && !t.declaration)
        {
            let (Some(name), Some(size)) = (name_of(offset, raw), raw.size) else {
                continue;
            };
            let members = raw.members.iter();
            let members = members
                .map(|m| (m.name.clone(), m.bits, spell(types, m.to, DEPTH)))
                .collect();
            let found = Struct { size, members };
            let list = self.defined.entry(name).or_default();
            if !list.contains(&found) {
                list.push(found);
            }
        }
        // What a static variable is, or a pointer points to, may outlive the call that made it. What holds a closure of Rust
        // does where it is static or behind a virtual table: pointers to the others are those of iterators.
        let holds_closure = |offset: &usize| {
            let name = types.get(offset).and_then(|t| t.name.as_ref());
            name.is_some_and(|name| name.contains("{closure_env#"))
        };
        let pointers = types
            .values()
            .filter(|t| is_pointer(t.tag))
            .filter_map(|t| t.to);
        let parameters = types.values().flat_map(|t| &t.parameters).copied();
        let reached = pointers.chain(parameters);
        let reached: Vec<usize> = reached
            .filter(|to| !is_rust || !holds_closure(to))
            .collect();
        for (mut work, all) in [(roots, true), (reached, !is_rust)] {
            let mut seen = BTreeSet::new();
            while let Some(offset) = work.pop() {
                if !all && holds_closure(&offset) {
                    continue;
                }
                let Some(raw) = types.get(&offset).filter(|_| seen.insert(offset)) else {
                    continue;
                };
                if is_struct(raw.tag) {
                    self.live.extend(name_of(&offset, raw));
                    work.extend(raw.members.iter().filter_map(|m| m.to));
                } else {
                    work.extend(raw.to);
                }
            }
        }
    }

    /// Which types of a unit are, or lead to, one of some structs: by the offset of their entries the structs' names.
    pub fn leading<'d>(
        dwarf: &Dwarf<Slice<'d>>,
        unit: &Unit<Slice<'d>>,
        structs: &BTreeSet<String>,
    ) -> Option<HashMap<usize, BTreeSet<String>>> {
        let mut leading: HashMap<usize, BTreeSet<String>> = HashMap::new();
        if structs.is_empty() {
            return Some(leading);
        }
        let types = collect(dwarf, unit, &mut 0)?.types;
        let named = typedefs(&types);
        let mut users: HashMap<usize, Vec<usize>> = HashMap::new();
        for (&from, raw) in &types {
            let members = raw.members.iter().filter_map(|m| m.to);
            for to in raw.to.into_iter().chain(members) {
                users.entry(to).or_default().push(from);
            }
        }
        for (&offset, raw) in types.iter().filter(|(_, raw)| is_struct(raw.tag)) {
            let Some(name) = name_of(&named, offset, raw).filter(|n| structs.contains(n)) else {
                continue;
            };
            let mut work = vec![offset];
            while let Some(offset) = work.pop() {
                if leading.entry(offset).or_default().insert(name.clone()) {
                    work.extend(users.get(&offset).into_iter().flatten());
                }
            }
        }
        Some(leading)
    }

    /// The names of all structs that are not what they were.
    pub fn all_changed(old: &Structs, new: &Structs) -> BTreeSet<String> {
        let changed = old.defined.iter().filter(|(name, before)| {
            let after = new.defined.get(*name);
            after.is_some_and(|after| after != *before)
        });
        changed.map(|(name, _)| name.clone()).collect()
    }

    /// The structs that are not what they were, of which objects may live on.
    pub fn changed(old: &Structs, new: &Structs) -> Vec<Changed> {
        let mut changed = Vec::new();
        for (name, before) in &old.defined {
            let Some(after) = new.defined.get(name) else {
                continue;
            };
            let live = old.live.contains(name) || new.live.contains(name);
            if !live || before.len() != after.len() || before.iter().all(|b| after.contains(b)) {
                continue;
            }
            // Several of one name in different scopes can't be told apart; any that is gone counts.
            let pair = before.iter().zip(after).find(|(b, a)| b != a);
            let what = pair.map_or_else(
                || "it has another layout".to_owned(),
                |(b, a)| difference(b, a),
            );
            changed.push(Changed {
                name: name.clone(),
                what,
                is_table: false,
            });
        }
        for (name, before) in &old.tables {
            if let Some(after) = new.tables.get(name)
                && after != before
            {
                let name = name.strip_suffix(">::{vtable}").unwrap_or(name);
                changed.push(Changed {
                    name: name.trim_start_matches('<').to_owned(),
                    what: "it leads to other functions, or in another order".to_owned(),
                    is_table: true,
                });
            }
        }
        changed
    }
}

/// In C a struct often has its name from a typedef only.
fn typedefs(types: &HashMap<usize, Raw>) -> HashMap<usize, &String> {
    let mut named: HashMap<usize, &String> = HashMap::new();
    for raw in types.values().filter(|t| t.tag == gimli::DW_TAG_typedef.0) {
        if let (Some(name), Some(to)) = (&raw.name, raw.to) {
            let first = named.entry(to).or_insert(name);
            *first = (*first).min(name);
        }
    }
    named
}

fn name_of(typedefs: &HashMap<usize, &String>, offset: usize, raw: &Raw) -> Option<String> {
    let typedef = typedefs.get(&offset).map(|n| (*n).clone());
    raw.name.clone().or(typedef)
}

/// The functions of a virtual table by their places in it.
fn slots(module: &Module<'_>, at: u64, size: u64) -> Vec<(u64, String)> {
    let (section, start) = ((at >> 32) as usize, at & 0xffff_ffff);
    let relas = module.relas(section, start, start.saturating_add(size));
    let slot = |rela: &livegraft_patchfile::elf::Rela| {
        let name = match module.meaning(rela.symbol, rela.addend) {
            Meaning::Item(item, 0) => module.item(item).map(|i| i.key.clone()),
            Meaning::Extern(symbol, _) => {
                let symbol = module.image.symbols.get(symbol);
                symbol.map(|s| super::names::key(&s.name))
            }
            _ => None,
        };
        (rela.offset.wrapping_sub(start), name.unwrap_or_default())
    };
    relas.iter().map(slot).collect()
}

fn difference(old: &Struct, new: &Struct) -> String {
    if old.size != new.size {
        return format!("it had {} bytes and has {}", old.size, new.size);
    }
    let gone = old.members.iter().find(|m| !new.members.contains(m));
    let added = new.members.iter().find(|m| !old.members.contains(m));
    match (gone, added) {
        (Some(g), Some(a)) if g.0 == a.0 && g.1 != a.1 => format!("its member `{}` moved", g.0),
        (Some(g), Some(a)) if g.0 == a.0 => format!("its member `{}` has another type", g.0),
        (_, Some(a)) => format!("it has the new member `{}`", a.0),
        (Some(g), None) => format!("its member `{}` is gone", g.0),
        (None, None) => "its members have another order".to_owned(),
    }
}

fn is_struct(tag: u16) -> bool {
    [
        gimli::DW_TAG_structure_type,
        gimli::DW_TAG_union_type,
        gimli::DW_TAG_class_type,
    ]
    .iter()
    .any(|t| t.0 == tag)
}

fn is_pointer(tag: u16) -> bool {
    let kinds = [
        gimli::DW_TAG_pointer_type,
        gimli::DW_TAG_reference_type,
        gimli::DW_TAG_rvalue_reference_type,
        gimli::DW_TAG_ptr_to_member_type,
    ];
    kinds.iter().any(|t| t.0 == tag)
}

/// A type in words, so that types of two objects can be compared.
fn spell(types: &HashMap<usize, Raw>, to: Option<usize>, depth: usize) -> String {
    let Some(raw) = to.and_then(|t| types.get(&t)) else {
        return "void".to_owned();
    };
    let Some(depth) = depth.checked_sub(1) else {
        return "...".to_owned();
    };
    let size = raw.size.map_or(String::new(), |s| format!(":{s}"));
    match &raw.name {
        _ if is_pointer(raw.tag) => format!("*{}", spell(types, raw.to, depth)),
        // What is behind a name may change, its name not.
        Some(name) if raw.tag == gimli::DW_TAG_typedef.0 => {
            format!("{name}={}", spell(types, raw.to, depth))
        }
        Some(name) if is_struct(raw.tag) => name.clone(),
        Some(name) => format!("{name}{size}"),
        None if raw.tag == gimli::DW_TAG_array_type.0 => {
            format!(
                "[{}]{}",
                raw.count.unwrap_or(0),
                spell(types, raw.to, depth)
            )
        }
        None if is_struct(raw.tag) => {
            let members = raw.members.iter().take(64);
            let members: Vec<String> = members.map(|m| format!("{}@{}", m.name, m.bits)).collect();
            format!("{{{}}}{size}", members.join(","))
        }
        None => format!("{}{}{size}", raw.tag, spell(types, raw.to, depth)),
    }
}

const ENUMERATION: u16 = gimli::DW_TAG_enumeration_type.0;

/// What a unit describes.
struct Collected {
    types: HashMap<usize, Raw>,
    /// The types of static variables, and of what virtual tables of Rust are for.
    roots: Vec<usize>,
    /// Rust's virtual tables: name, address, size.
    tables: Vec<(String, u64, u64)>,
    is_rust: bool,
}

/// What an entry lies in.
struct Around {
    depth: isize,
    /// The type.
    of: Option<usize>,
    /// What comes before the names of what lies in it.
    scope: String,
    /// The same for members: of which variant they are.
    variant: String,
}

/// The types of a unit, and those of its static variables.
fn collect<'d>(
    dwarf: &Dwarf<Slice<'d>>,
    unit: &Unit<Slice<'d>>,
    total: &mut usize,
) -> Option<Collected> {
    let mut types: HashMap<usize, Raw> = HashMap::new();
    let mut roots = Vec::new();
    let mut entry = Entry::null();
    let mut entries = unit.entries_raw(None).ok()?;
    let mut tables: Vec<(String, u64, usize)> = Vec::new();
    let mut is_rust = false;
    let mut around: Vec<Around> = Vec::new();
    while !entries.is_empty() {
        *total = total.saturating_add(1);
        if *total > MOST {
            return None;
        }
        if !entries.read_entry(&mut entry).ok()? {
            continue;
        }
        let depth = entry.depth();
        while around.last().is_some_and(|a| a.depth >= depth) {
            around.pop();
        }
        let offset = entry.offset().0;
        let to = match entry.attr_value(gimli::DW_AT_type) {
            Some(AttributeValue::UnitRef(to)) => Some(to.0),
            _ => None,
        };
        let outer = around.last();
        let parent = outer
            .filter(|a| a.depth.checked_add(1) == Some(depth))
            .and_then(|a| a.of);
        let scope = outer.map_or(String::new(), |a| a.scope.clone());
        let variant = outer.map_or(String::new(), |a| a.variant.clone());
        let number = |at| {
            entry
                .attr_value(at)
                .and_then(|v: AttributeValue<Slice<'_>>| v.udata_value())
        };
        match entry.tag() {
            gimli::DW_TAG_member | gimli::DW_TAG_inheritance => {
                // A static member lies elsewhere.
                let apart = entry.attr_value(gimli::DW_AT_external).is_some();
                let parent = parent.filter(|_| !apart);
                if let Some(parent) = parent.and_then(|p| types.get_mut(&p)) {
                    let bytes = number(gimli::DW_AT_data_member_location).unwrap_or(0);
                    let bits =
                        number(gimli::DW_AT_data_bit_offset).or(number(gimli::DW_AT_bit_offset));
                    let name = name(dwarf, unit, &entry).unwrap_or_default();
                    parent.members.push(Member {
                        name: format!("{variant}{name}"),
                        bits: bytes.saturating_mul(8).saturating_add(bits.unwrap_or(0)),
                        to,
                    });
                }
                continue;
            }
            gimli::DW_TAG_subrange_type => {
                if let Some(parent) = parent.and_then(|p| types.get_mut(&p)) {
                    let bound = number(gimli::DW_AT_upper_bound).map(|b| b.saturating_add(1));
                    let count = number(gimli::DW_AT_count).or(bound).unwrap_or(0);
                    parent.count = Some(parent.count.unwrap_or(1).saturating_mul(count));
                }
                continue;
            }
            gimli::DW_TAG_compile_unit => {
                is_rust = entry.attr_value(gimli::DW_AT_language)
                    == Some(AttributeValue::Language(gimli::DW_LANG_Rust));
                continue;
            }
            gimli::DW_TAG_namespace => {
                let name = name(dwarf, unit, &entry);
                let name = name.unwrap_or_else(|| "(anonymous namespace)".to_owned());
                let scope = format!("{scope}{name}::");
                // Deeper than that no source is nested.
                let (of, variant) = (None, String::new());
                around.push(Around {
                    depth,
                    of,
                    scope,
                    variant,
                });
                continue;
            }
            // What Rust's enums may be: each variant has members of its own.
            gimli::DW_TAG_variant_part | gimli::DW_TAG_variant => {
                let is_variant = entry.tag() == gimli::DW_TAG_variant;
                let variant = match number(gimli::DW_AT_discr_value).filter(|_| is_variant) {
                    Some(value) => format!("{value}:"),
                    None => variant,
                };
                around.push(Around {
                    depth,
                    of: parent,
                    scope,
                    variant,
                });
                continue;
            }
            gimli::DW_TAG_enumerator if is_rust => {
                if let Some(parent) = parent.and_then(|p| types.get_mut(&p)) {
                    parent.members.push(Member {
                        name: name(dwarf, unit, &entry).unwrap_or_default(),
                        bits: number(gimli::DW_AT_const_value).unwrap_or(0),
                        to: None,
                    });
                }
                continue;
            }
            gimli::DW_TAG_template_type_parameter if is_rust => {
                if let (Some(to), Some(parent)) = (to, parent.and_then(|p| types.get_mut(&p))) {
                    parent.parameters.push(to);
                }
                continue;
            }
            gimli::DW_TAG_variable => {
                let addresses = [Some(&gimli::DW_OP_addr.0), Some(&gimli::DW_OP_addrx.0)];
                let at_address = match entry.attr_value(gimli::DW_AT_location) {
                    Some(AttributeValue::Exprloc(e)) => {
                        let at = e.0.slice().get(1..9).and_then(|b| b.first_chunk());
                        let name = name(dwarf, unit, &entry);
                        let name = name.filter(|name| is_rust && name.ends_with("{vtable}"));
                        if let (Some(name), Some(at), Some(to)) = (name, at, to) {
                            tables.push((name, u64::from_le_bytes(*at), to));
                        }
                        addresses.contains(&e.0.slice().first())
                    }
                    _ => false,
                };
                if at_address || entry.attr_value(gimli::DW_AT_external).is_some() {
                    roots.extend(to);
                }
                continue;
            }
            _ => {}
        }
        let kinds = [
            gimli::DW_TAG_typedef,
            gimli::DW_TAG_base_type,
            gimli::DW_TAG_const_type,
            gimli::DW_TAG_volatile_type,
            gimli::DW_TAG_restrict_type,
            gimli::DW_TAG_atomic_type,
            gimli::DW_TAG_array_type,
            gimli::DW_TAG_enumeration_type,
            gimli::DW_TAG_subroutine_type,
        ];
        let tag = entry.tag();
        if is_struct(tag.0) || is_pointer(tag.0) || kinds.contains(&tag) {
            let flag = AttributeValue::Flag(true);
            if let Some(AttributeValue::UnitRef(of)) =
                entry.attr_value(gimli::DW_AT_containing_type)
                && is_rust
            {
                roots.push(of.0);
            }
            let own = name(dwarf, unit, &entry);
            let within = own
                .as_ref()
                .map_or(scope.clone(), |n| format!("{scope}{n}::"));
            types.insert(
                offset,
                Raw {
                    tag: tag.0,
                    name: own.map(|own| format!("{scope}{own}")),
                    size: number(gimli::DW_AT_byte_size),
                    to,
                    declaration: entry.attr_value(gimli::DW_AT_declaration) == Some(flag),
                    ..Raw::default()
                },
            );
            around.push(Around {
                depth,
                of: Some(offset),
                scope: within,
                variant: String::new(),
            });
        }
    }
    let size = |to: &usize| types.get(to).and_then(|t| t.size).unwrap_or(0);
    let tables = tables
        .into_iter()
        .map(|(name, at, to)| (name, at, size(&to)))
        .collect();
    Some(Collected {
        types,
        roots,
        tables,
        is_rust,
    })
}
