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

/// Whether this is a constant without a name in the source that LLVM gave one, of a hash of all that is compiled with it, so
/// that other codegen units of the crate can use it: `anon.HASH.N.llvm.HASH`.
pub(super) fn is_unnamed(name: &str) -> bool {
    name.strip_prefix("anon.").is_some_and(|rest| {
        let hash = rest.split('.').next().unwrap_or_default();
        hash.len() == 32 && hash.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// Whether this is the `main` of a program in Rust: `CRATE::main`.
pub(super) fn is_rust_main(name: &str) -> bool {
    // A part of a path: its length, and it.
    fn behind_part(path: &str) -> Option<&str> {
        let at = path.bytes().take_while(u8::is_ascii_digit).count();
        let length: usize = path.get(..at)?.parse().ok()?;
        path.get(at.checked_add(length)?..)
    }
    match name.strip_prefix("_ZN").and_then(behind_part) {
        Some(rest) => rest.starts_with("4main17h"),
        // _RNv, a crate with its hash, and the name.
        None => name.strip_prefix("_RNvC").is_some_and(|rest| {
            let rest = rest.strip_prefix('s').and_then(|r| r.split_once('_'));
            rest.and_then(|(_, rest)| behind_part(rest)) == Some("4main")
        }),
    }
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
        assert!(is_rust_main("_ZN3app4main17h6c863ac80be5c973E"));
        assert!(is_rust_main("_RNvCsgEmfK2I1SDS_3app4main"));
        for name in [
            "main",
            "_ZN3app3two4main17h6c863ac80be5c973E",
            "_ZN3app5maine",
            "_ZN9",
        ] {
            assert!(!is_rust_main(name), "{name}");
        }
        let promoted = "anon.46f8090bebfe3d7618b5670d1d3893d8.2.llvm.7288464450813666196";
        assert!(is_unnamed(promoted) && !is_unnamed("anon.4") && !is_unnamed("count.3"));
        assert!(is_numbered("count.3") && !is_numbered("count") && !is_numbered("foo.cold"));
    }
}
