use super::*;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

const SOURCE: &str = "extern int puts(const char *);
static inline __attribute__((always_inline)) int inner(int x) { return puts(\"a\") + x; }
static inline __attribute__((always_inline)) int outer(int x) { return inner(x) * 3; }
int f(int x) { return outer(x) + 1; }
int g(int x) { return x ? f(x - 1) + outer(x) : 7; }
";

type Sections = Vec<(String, Vec<u8>)>;

/// The debug sections of a compiled source, and where its f() lies.
fn compiled(flags: &[&str]) -> Option<(Sections, u64)> {
    let dir = tempfile::tempdir().unwrap();
    let (source, built) = (dir.path().join("f.c"), dir.path().join("f.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let mut compiler = std::process::Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&built);
    if !compiler.arg(&source).args(flags).status().ok()?.success() {
        return None;
    }
    let bytes = std::fs::read(&built).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let sections = file.sections().filter_map(|section| {
        let name = section.name().ok()?.to_owned();
        let data = section.uncompressed_data().ok()?.into_owned();
        name.starts_with(".debug").then_some((name, data))
    });
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok("f"))?;
    Some((sections.collect(), symbol.address()))
}

fn open(sections: &Sections, budget: &mut Budget) -> Option<Debug> {
    let section = |name: &'static str| {
        let found = sections.iter().find(|(known, _)| known == name);
        found.map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    };
    Debug::open(section, budget)
}

#[test]
fn each_version_names_what_was_inlined() {
    for flags in [["-gdwarf-4"], ["-gdwarf-5"]] {
        let Some((sections, f)) = compiled(&flags) else {
            eprintln!("skipped: no C compiler");
            return;
        };
        let mut budget = Budget::new(Duration::from_secs(60));
        let mut debug = open(&sections, &mut budget).unwrap();
        // The call of puts() is somewhere in f(), and in inner() and outer() therefore.
        let chains = (f..f + 32).map(|at| debug.functions_at(at, &mut budget));
        let deepest = chains.max_by_key(Vec::len).unwrap();
        let names: Vec<_> = deepest.iter().map(|f| f.name.as_deref()).collect();
        assert_eq!(names, [Some("inner"), Some("outer"), Some("f")]);
        let lines: Vec<_> = deepest.iter().map(|f| f.place.line).collect();
        assert_eq!(lines, [Some(2), Some(3), Some(4)]);
        for function in &deepest {
            assert!(function.place.file.as_ref().unwrap().ends_with("/f.c"));
        }
        assert!(debug.functions_at(u64::MAX, &mut budget).is_empty());
        assert!(debug.functions_at(0, &mut budget).is_empty());
    }
}

/// Damage costs names, not the command: no panic, no endless loop.
#[test]
fn damaged_information_is_survived() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % bound.max(1)
    };
    for flags in [["-gdwarf-4"], ["-gdwarf-5"]] {
        let Some((intact, f)) = compiled(&flags) else {
            eprintln!("skipped: no C compiler");
            return;
        };
        for round in 0..5000 {
            let mut sections = intact.clone();
            for _ in 0..=round % 4 {
                let which = random(sections.len());
                let (_, bytes) = &mut sections[which];
                let at = random(bytes.len());
                match (bytes.get_mut(at), round % 50) {
                    (Some(_), 49) => bytes.truncate(at),
                    (Some(byte), even) if even % 2 == 0 => *byte = 0xff,
                    (Some(byte), _) => *byte = random(256) as u8,
                    (None, _) => {}
                }
            }
            let mut budget = Budget::new(Duration::from_secs(60));
            if let Some(mut debug) = open(&sections, &mut budget) {
                for at in [f, f + 4, f + 9, f + 17, 0, u64::MAX] {
                    assert!(debug.functions_at(at, &mut budget).len() <= MOST_INLINED + 2);
                }
            }
        }
    }
}

/// Functions each within the one before: a walk by recursion would leave the stack.
#[test]
fn deep_nesting_is_survived() {
    // 1: the unit, 2: a function of one byte, 3: one that is inlined there, of the same address.
    let abbreviations = [
        &[1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0, 0][..],
        &[2, 0x2e, 1, 0x11, 0x01, 0x12, 0x07, 0, 0],
        &[3, 0x1d, 1, 0x11, 0x01, 0x12, 0x07, 0, 0, 0],
    ];
    let range = [&0x1000_u64.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    let mut entries = Vec::new();
    for code in [1, 2].into_iter().chain(std::iter::repeat_n(3, 200_000)) {
        entries.push(code);
        entries.extend_from_slice(&range);
    }
    let mut info = Vec::new();
    info.extend_from_slice(&u32::try_from(entries.len() + 7).unwrap().to_le_bytes());
    info.extend_from_slice(&[4, 0, 0, 0, 0, 0, 8]);
    info.extend_from_slice(&entries);
    let sections = Vec::from([
        (".debug_info".to_owned(), info),
        (".debug_abbrev".to_owned(), abbreviations.concat()),
    ]);
    let mut budget = Budget::new(Duration::from_secs(60));
    let mut debug = open(&sections, &mut budget).unwrap();
    let chain = debug.functions_at(0x1000, &mut budget);
    assert_eq!(chain.len(), MOST_INLINED + 1);
}

#[test]
fn nothing_is_found_when_the_time_is_over() {
    let mut budget = Budget::new(Duration::ZERO);
    assert!(open(&Vec::new(), &mut budget).is_none_or(|_| budget.step().is_none()));
}
