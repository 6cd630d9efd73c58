//! The structs of an object, from its debug information: which of them changed, and of which of those objects live on.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gimli::{AttributeValue, Dwarf, Unit};

use super::dwarf::{Entry, Sections, Slice, name, units};
use super::module::Module;

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
}

/// What a struct is no more.
pub(super) struct Changed {
    pub name: String,
    pub what: String,
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
            let (types, roots) = collect(&dwarf, &unit, &mut total)?;
            structs.add(&types, roots);
        }
        Some(structs)
    }

    fn add(&mut self, types: &HashMap<usize, Raw>, roots: Vec<usize>) {
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
        // What a static variable is, or a pointer points to, may outlive the call that made it.
        let mut work = roots;
        let pointers = types
            .values()
            .filter(|t| is_pointer(t.tag))
            .filter_map(|t| t.to);
        work.extend(pointers);
        let mut seen = BTreeSet::new();
        while let Some(offset) = work.pop() {
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
        let (types, _) = collect(dwarf, unit, &mut 0)?;
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
            });
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

type Collected = (HashMap<usize, Raw>, Vec<usize>);

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
    // The types that the entry lies in.
    let mut around: Vec<(isize, usize)> = Vec::new();
    while !entries.is_empty() {
        *total = total.saturating_add(1);
        if *total > MOST {
            return None;
        }
        if !entries.read_entry(&mut entry).ok()? {
            continue;
        }
        let depth = entry.depth();
        while around.last().is_some_and(|a| a.0 >= depth) {
            around.pop();
        }
        let offset = entry.offset().0;
        let to = match entry.attr_value(gimli::DW_AT_type) {
            Some(AttributeValue::UnitRef(to)) => Some(to.0),
            _ => None,
        };
        let parent = around
            .last()
            .filter(|a| a.0.checked_add(1) == Some(depth))
            .map(|a| a.1);
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
                    parent.members.push(Member {
                        name: name(dwarf, unit, &entry).unwrap_or_default(),
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
            gimli::DW_TAG_variable => {
                let addresses = [Some(&gimli::DW_OP_addr.0), Some(&gimli::DW_OP_addrx.0)];
                let at_address = match entry.attr_value(gimli::DW_AT_location) {
                    Some(AttributeValue::Exprloc(e)) => addresses.contains(&e.0.slice().first()),
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
            types.insert(
                offset,
                Raw {
                    tag: tag.0,
                    name: name(dwarf, unit, &entry),
                    size: number(gimli::DW_AT_byte_size),
                    to,
                    declaration: entry.attr_value(gimli::DW_AT_declaration) == Some(flag),
                    ..Raw::default()
                },
            );
            around.push((depth, offset));
        }
    }
    Some((types, roots))
}
