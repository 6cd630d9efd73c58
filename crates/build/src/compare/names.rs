//! What compilers append to names: numbers of static local variables, kinds of clones.

/// The name that a clone or a static variable has apart from its numbers: `count.3` is `count`,
/// `foo.constprop.1.isra.0` is `foo.constprop.isra`. Numbers change with every function that is added.
pub(super) fn key(name: &str) -> String {
    // `.L` names and the like begin with the dot itself.
    let (dot, rest) = name
        .strip_prefix('.')
        .map_or(("", name), |rest| (".", rest));
    let mut parts = rest.split('.');
    let mut key = format!("{dot}{}", parts.next().unwrap_or_default());
    for part in parts {
        if !is_number(part) && part != "localalias" && part != "lto_priv" {
            key.push('.');
            key.push_str(part);
        }
    }
    key
}

/// The function as the source calls it: without any kind of clone.
pub(super) fn source_name(name: &str) -> &str {
    match name.get(1..).and_then(|rest| rest.find('.')) {
        Some(dot) => name.get(..=dot).unwrap_or(name),
        None => name,
    }
}

/// The function that a function is a copy of, and what the compiler made it for: `foo.constprop.1` is one of `foo`, for
/// `constprop`.
pub(super) fn copy_of(name: &str) -> Option<(&str, &str)> {
    let of = source_name(name);
    let made = name.get(of.len()..)?;
    let kinds = ["constprop", "isra", "part", "specialized", "clone"];
    let how = made.split('.').find(|part| kinds.contains(part))?;
    (!of.is_empty()).then_some((of, how))
}

/// Whether a variable is one of several that may have the same name: a static variable of a function, a table that the
/// compiler made.
pub(super) fn is_numbered(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(is_number) && name.contains('.')
}

/// The function that a part was split off from, if a name is that of such a part. (`.part.N` is called like a function.)
pub(super) fn owner_of_part(name: &str) -> Option<&str> {
    let (owner, rest) = name.rsplit_once(".cold")?;
    let tail = rest.strip_prefix('.').unwrap_or(rest);
    (!owner.is_empty() && (tail.is_empty() || is_number(tail))).then_some(owner)
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_count() {
        for (name, expected) in [
            ("count.3", "count"),
            ("count", "count"),
            ("foo.constprop.1.isra.0", "foo.constprop.isra"),
            ("foo.cold", "foo.cold"),
            ("foo.part.0.cold", "foo.part.cold"),
            ("foo.localalias", "foo"),
            (".LC7", ".LC7"),
            ("", ""),
            ("foo.lto_priv.2", "foo"),
        ] {
            assert_eq!(key(name), expected, "{name}");
        }
        assert_eq!(source_name("foo.part.0.cold"), "foo");
        assert_eq!(source_name("foo"), "foo");
        assert_eq!(source_name(""), "");
        assert_eq!(copy_of("foo.constprop.1"), Some(("foo", "constprop")));
        assert_eq!(copy_of("foo.cold"), None);
        assert_eq!(owner_of_part("foo.part.0.cold"), Some("foo.part.0"));
        assert_eq!(owner_of_part("foo.cold.2"), Some("foo"));
        assert_eq!(owner_of_part("foo.coldest"), None);
        assert_eq!(owner_of_part(".cold"), None);
        assert!(is_numbered("count.3") && !is_numbered("count") && !is_numbered("foo.cold"));
    }
}
