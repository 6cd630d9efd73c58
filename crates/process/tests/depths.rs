//! How deep the stack is at calls: what is known of compiled functions, and that it agrees with their call frame
//! information wherever that says it as well.

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, LittleEndian, UnwindContext, UnwindSection,
};
use livegraft_process::arch::{self, Callee, Depths};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = r#"
#include <alloca.h>
#include <setjmp.h>
#include <string.h>
#define ALONE __attribute__((noinline))
extern ALONE int one(int);
extern ALONE void fill(void *, int);
extern void (*hook)(int);
extern int (*const *hooks)(int);
int plain(int x) { char text[64]; fill(text, x); x += one(x); one(x); return text[x & 63] + one(2); }
int loops(int x) { int sum = 0; for (int i = 0; i < x; i++) sum += one(i) + plain(sum); return sum; }
int snprintf(char *, unsigned long, const char *, ...);
int arguments(int x) { char text[64]; fill(text, x); snprintf(text, 64, "", 4, 5, 6, 7, 8, x); return text[0] + one(x); }
int allocates(int x) { char *text = alloca(x); fill(text, x); return text[0] + one(x); }
int array(int x) { char text[x]; fill(text, x); return text[0] + one(x); }
int aligned(int x) { _Alignas(64) char text[64]; fill(text, x); return text[0] + one(x); }
int leaves(int x) { one(x); return one(x + 1); }
void hooked(int x) { one(x); hook(x); one(x); __asm__ volatile(""); }
int jumps(int x) {
	switch (x) {
	case 0: one(9); break; case 1: one(x + 7); break; case 2: plain(one(x)); one(3); break;
	case 3: plain(2); break; case 4: one(1); plain(x); break; case 5: plain(plain(x)); break;
	case 6: one(one(3)); break; case 7: loops(x); break; default: return -1;
	}
	return one(x) + 1;
}
static jmp_buf place;
int twice(int x) { if (setjmp(place)) return one(3) + 1; return one(x) + 2; }
int main(void) { return 0; }
int one(int x) { __asm__ volatile(""); return x; }
void fill(void *at, int x) { __asm__ volatile(""); memset(at, x, 1); }
void (*hook)(int); int (*const *hooks)(int);
"#;

const THROWS: &str = r#"
extern "C" int one(int);
struct Guard { int x; ~Guard() { one(x); } };
extern "C" int catches(int x) {
	Guard guard{x};
	try { one(x); } catch (int y) { return one(y) + 1; }
	return one(2) + 1;
}
int main() {}
extern "C" __attribute__((noinline)) int one(int x) { if (x == 7) throw x; return x; }
"#;

fn has(compiler: &str) -> bool {
    let found = Command::new(compiler).arg("--version").output().is_ok();
    if !found {
        assert!(
            std::env::var_os("LIVEGRAFT_REQUIRE").is_none(),
            "{compiler} is missing"
        );
        eprintln!("skipped: {compiler} is missing");
    }
    found
}

/// A program's bytes.
fn built(compiler: &str, language: &str, flags: &[&str], source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("program.{language}"));
    std::fs::write(&path, source).unwrap();
    let exe = dir.path().join("program");
    let built = Command::new(compiler)
        .args(["-fno-builtin", "-fPIE", "-pie", "-w"])
        .args(flags)
        .arg(&path)
        .arg("-o")
        .arg(&exe)
        .status();
    assert!(built.unwrap().success());
    std::fs::read(exe).unwrap()
}

/// What is known of a function, with its cold part.
fn of(bytes: &[u8], name: &str) -> Option<Depths> {
    let file = object::File::parse(bytes).unwrap();
    let mut parts = Vec::new();
    for wanted in [name.to_owned(), format!("{name}.cold")] {
        let symbol = file.symbols().find(|s| s.name() == Ok(wanted.as_str()));
        let Some(symbol) = symbol else { continue };
        let section = symbol.section_index().unwrap();
        let section = file.section_by_index(section).unwrap();
        let code = section.data_range(symbol.address(), symbol.size()).unwrap();
        parts.push((symbol.address(), code.unwrap().to_vec()));
    }
    arch::depths(parts[0].0, &parts)
}

/// What is said of its calls: the depth of all, or the least one.
fn says(bytes: &[u8], name: &str) -> (Option<u64>, Option<u64>) {
    let depths = of(bytes, name);
    let depths = depths.unwrap_or_default();
    (depths.constant(), depths.least())
}

#[test]
fn functions_as_compilers_make_them() {
    for (compiler, level) in [
        ("gcc", "-O0"),
        ("gcc", "-O2"),
        ("clang", "-O0"),
        ("clang", "-O2"),
    ] {
        if !has(compiler) {
            continue;
        }
        let bytes = built(compiler, "c", &[level], PROGRAM);
        // A switch without optimisation is not recognised.
        let switch = (level == "-O2").then_some("jumps");
        let names = ["plain", "loops", "hooked", "twice"];
        for name in names.into_iter().chain(switch) {
            let (constant, least) = says(&bytes, name);
            assert!(
                constant.is_some() && constant == least,
                "{compiler} {level} {name}: {constant:?} {least:?}"
            );
        }
        for name in ["allocates", "array", "aligned"] {
            assert_eq!(of(&bytes, name), None, "{compiler} {level} {name}");
        }
        // What is pushed for one call makes it deeper than the others.
        let (constant, least) = says(&bytes, "arguments");
        assert!(least.is_some(), "{compiler} {level}");
        if compiler == "gcc" || level == "-O2" {
            assert_eq!(constant, None, "{compiler} {level}");
        }
        // A jump to another function, where it is made to one.
        let left = of(&bytes, "leaves");
        assert_eq!(left.is_some(), level == "-O0", "{compiler} {level}");
        // What is called.
        let calls = of(&bytes, "hooked").unwrap_or_default();
        let to: Vec<Callee> = calls.iter().map(|(_, site)| site.to).collect();
        let one = of(&bytes, "plain").unwrap_or_default();
        let one = one.iter().last().map(|(_, site)| site.to);
        assert!(matches!(one, Some(Callee::Code(_))), "{one:?}");
        assert_eq!(to.first().copied(), one, "{compiler} {level}");
        assert!(
            to.contains(&Callee::Unknown) || to.iter().any(|to| matches!(to, Callee::Word(_))),
            "{to:?}"
        );
        // Only what lies in a loop is called again.
        let again = |name| {
            let depths = of(&bytes, name).unwrap_or_default();
            let mut again: Vec<bool> = depths.iter().map(|(_, site)| site.again).collect();
            again.dedup();
            again
        };
        assert_eq!(again("plain"), [false], "{compiler} {level}");
        assert_eq!(again("loops"), [true], "{compiler} {level}");
    }
}

#[test]
fn where_exceptions_land_the_stack_is_as_at_the_call() {
    for (compiler, level) in [("g++", "-O0"), ("g++", "-O2"), ("clang++", "-O2")] {
        if !has(compiler) {
            continue;
        }
        let bytes = built(compiler, "cc", &[level], THROWS);
        let depths = of(&bytes, "catches").unwrap_or_default();
        assert!(depths.constant().is_some(), "{compiler} {level}");
        // The landing pad has calls of its own, and where a path comes back to is not known.
        assert!(depths.iter().count() > 3, "{compiler} {level}");
        assert!(depths.iter().all(|(_, site)| site.again));
    }
}

/// The code of a function, one instruction after the other.
fn depths_of(code: &[u8]) -> Option<Depths> {
    arch::depths(0x1000, &[(0x1000, code.to_vec())])
}

#[test]
fn what_is_not_certain_is_not_known() {
    const CALL: [u8; 5] = [0xe8, 0, 1, 0, 0];
    let with = |before: &[u8], after: &[u8]| depths_of(&[before, &CALL, after].concat());
    // sub $8,%rsp; call; add $8,%rsp; ret
    let sub = [0x48, 0x83, 0xec, 8];
    let add = [0x48, 0x83, 0xc4, 8];
    let good = with(&sub, &[add.as_slice(), &[0xc3]].concat()).unwrap();
    assert_eq!(good.constant(), Some(8));
    assert_eq!(
        good.site(0x1009).map(|site| site.to),
        Some(Callee::Code(0x1109))
    );
    // It returns by a word that it has pushed.
    assert_eq!(with(&sub, &[0xc3]), None);
    // Its end is not reached: a call that does not return.
    assert!(with(&sub, &[]).is_some());
    // It goes on in what follows it.
    assert_eq!(with(&sub, &add), None);
    // Two paths meet with the stack at two depths: je over the sub.
    assert_eq!(with(&[0x74, 4, 0x48, 0x83, 0xec, 8], &[0xf4]), None);
    // jmp to its own entry, jmp *%rax, call into itself, a far jump, an interrupt.
    let own_entry = [add.as_slice(), &[0xeb, 0xf1]].concat();
    assert_eq!(with(&sub, &own_entry), None);
    assert_eq!(with(&sub, &[0xff, 0xe0]), None);
    assert_eq!(depths_of(&[0xe8, 0, 0, 0, 0, 0x58, 0xc3]), None);
    assert_eq!(with(&sub, &[0xff, 0x2c, 0x24]), None);
    assert_eq!(with(&sub, &[0xcd, 0x80, 0xf4]), None);
    // Other stacks: mov %rdi,%rsp; xchg %rsp,%rax; pop %rsp; leave without a frame.
    assert_eq!(with(&[0x48, 0x89, 0xfc], &[0xf4]), None);
    assert_eq!(with(&[0x48, 0x94], &[0xf4]), None);
    assert_eq!(with(&[0x5c], &[0xf4]), None);
    assert_eq!(with(&[0xc9], &[0xf4]), None);
    // Its caller's stack: pop %rax.
    assert_eq!(with(&[0x58], &[0xf4]), None);
    // add %rbx,%rax; mov %rcx,%rax; jmp *%rax is no switch; with movslq (%rbx,%rdx,4),%rax before the add it is one.
    let sum = [0x48, 0x01, 0xd8];
    let load = [0x48, 0x63, 0x04, 0x93];
    let jump = [0xff, 0xe0];
    let copy = [0x48, 0x89, 0xc8];
    assert!(with(&sub, &[load.as_slice(), &sum, &jump].concat()).is_some());
    assert_eq!(
        with(&sub, &[load.as_slice(), &sum, &copy, &jump].concat()),
        None
    );
    assert_eq!(
        with(&sub, &[load.as_slice(), &copy, &sum, &jump].concat()),
        None
    );
    assert_eq!(with(&sub, &[sum.as_slice(), &jump].concat()), None);
    // Bytes that are read in two ways, and such that are no code.
    assert_eq!(depths_of(&[0xeb, 1, 0xb8, 0xeb, 0xfd, 0xf4, 0xf4]), None);
    assert_eq!(with(&sub, &[0xf4, 0x06]), None);
}

/// (functions, known, calls that both speak of)
fn compare(path: &Path) -> (usize, usize, usize) {
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let frames = file.section_by_name(".eh_frame").unwrap();
    let data = frames.data().unwrap();
    let section = EhFrame::new(data, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(frames.address());
    let (mut functions, mut known, mut compared) = (0, 0, 0);
    let mut entries = section.entries(&bases);
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let fde = partial.parse(EhFrame::cie_from_offset).unwrap();
        let (start, len) = (fde.initial_address(), fde.len());
        let mut texts = file.sections();
        let code = texts.find_map(|text| text.data_range(start, len).ok().flatten());
        let Some(code) = code else { continue };
        let mut context = UnwindContext::new();
        // Not where it is a part of a function, or may be: that is jumped to with a stack that is in use, and holds what
        // exceptions of the other parts lead to.
        let first = fde.unwind_info_for_address(&section, &bases, &mut context, start);
        let is_entry = first.is_ok_and(|row| {
            *row.cfa()
                == CfaRule::RegisterAndOffset {
                    register: gimli::Register(7),
                    offset: 8,
                }
        });
        if !is_entry || fde.lsda().is_some() {
            continue;
        }
        functions += 1;
        let Some(depths) = arch::depths(start, &[(start, code.to_vec())]) else {
            continue;
        };
        known += 1;
        for (back, site) in depths.iter() {
            let row = fde.unwind_info_for_address(&section, &bases, &mut context, back - 1);
            if let Ok(row) = row
                && let CfaRule::RegisterAndOffset {
                    register: gimli::Register(7),
                    offset,
                } = row.cfa()
            {
                compared += 1;
                assert_eq!(
                    u64::try_from(offset - 8),
                    Ok(site.depth),
                    "{} {start:#x}: the call that returns to {back:#x}",
                    path.display()
                );
            }
        }
    }
    (functions, known, compared)
}

#[test]
fn stock_libraries_say_the_same() {
    let mut all = 0;
    for path in [
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
        "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
        "/usr/lib/x86_64-linux-gnu/libevent-2.1.so.7",
        "/usr/bin/redis-server",
    ] {
        let path = Path::new(path);
        if path.exists() {
            let (functions, known, compared) = compare(path);
            eprintln!(
                "     {}: {known} of {functions} functions are known, {compared} calls are equally deep",
                path.display()
            );
            all += compared;
        }
    }
    assert!(all > 5000, "{all}");
}
