//! The text of source files, as far as it tells what a diff changes: bodies of functions, and macros. White space and
//! comments do not count.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Side;
use super::declared::Decl;

/// The source files from which both objects were compiled.
pub trait Texts {
    /// A file as the compiler saw it, by the path that it had for it; `None` where it is not known.
    fn text(&self, side: Side, path: &Path) -> Option<Vec<u8>>;
    /// The files that the diff changes, by such paths.
    fn changed(&self) -> Vec<PathBuf>;
    /// Such a path as people know it.
    fn shown(&self, path: &Path) -> PathBuf;
    /// The line of a file that the compiler knows by a number.
    fn line(&self, side: Side, path: &Path, number: u64) -> u64;
}

/// Where there are objects and nothing else.
#[derive(Debug, Clone, Copy)]
pub struct NoTexts;

impl Texts for NoTexts {
    fn text(&self, _: Side, _: &Path) -> Option<Vec<u8>> {
        None
    }

    fn changed(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// The file's name: where it lay when it was compiled says nothing later.
    fn shown(&self, path: &Path) -> PathBuf {
        path.file_name().map_or_else(PathBuf::new, PathBuf::from)
    }

    fn line(&self, _: Side, _: &Path, number: u64) -> u64 {
        number
    }
}

/// A file in tokens.
struct Lexed {
    text: Vec<u8>,
    tokens: Vec<Token>,
}

struct Token {
    line: u64,
    range: Range<usize>,
    /// Which directive of the preprocessor it belongs to, from 1 on; 0: to none.
    directive: u32,
}

/// The tokens of a function.
pub(super) struct Body {
    file: Rc<Lexed>,
    range: Range<usize>,
}

impl Body {
    pub fn tokens(&self) -> impl Iterator<Item = &[u8]> {
        let tokens = self.file.tokens.get(self.range.clone()).unwrap_or_default();
        tokens.iter().map(|token| self.file.token(token))
    }
}

type Known = HashMap<(bool, PathBuf), Option<Rc<Lexed>>>;

/// The files, each read once.
pub(super) struct Files<'t> {
    texts: &'t dyn Texts,
    /// By whether they are of the patched source, and by path.
    lexed: RefCell<Known>,
}

impl<'t> Files<'t> {
    pub fn new(texts: &'t dyn Texts) -> Self {
        Files {
            texts,
            lexed: RefCell::default(),
        }
    }

    fn lexed(&self, side: Side, path: &Path) -> Option<Rc<Lexed>> {
        let key = (side == Side::Patched, path.to_owned());
        let mut known = self.lexed.borrow_mut();
        let read = || Some(Rc::new(Lexed::new(self.texts.text(side, path)?)));
        known.entry(key).or_insert_with(read).clone()
    }

    /// The function that is declared somewhere, up to the end of its body; `others`: the lines of those in its file, by the
    /// numbers that the compiler has for them. `None` where it can't be told for sure.
    pub fn body(&self, side: Side, decl: &Decl, others: impl Iterator<Item = u64>) -> Option<Body> {
        let file = self.lexed(side, &decl.file)?;
        let line = |number| self.texts.line(side, &decl.file, number);
        let start = line(decl.line);
        let next = others.map(line).filter(|other| *other > start).min();
        let range = file.body(&decl.name, start, next)?;
        Some(Body { file, range })
    }

    /// The macros that the diff changes, and those that are made of them.
    pub fn changed_macros(&self) -> BTreeSet<String> {
        let mut all: [BTreeMap<String, Vec<Vec<Vec<u8>>>>; 2] = Default::default();
        for path in self.texts.changed() {
            for (side, found) in [Side::Original, Side::Patched].into_iter().zip(&mut all) {
                if let Some(file) = self.lexed(side, &path) {
                    for (name, definition) in file.macros() {
                        found.entry(name).or_default().push(definition);
                    }
                }
            }
        }
        let [old, new] = all;
        let both = || old.iter().chain(&new);
        let differs = |(name, _): &(&String, &_)| old.get(*name) != new.get(*name);
        let mut changed: BTreeSet<String> =
            both().filter(differs).map(|(n, _)| n.clone()).collect();
        while !changed.is_empty() {
            let uses = |definitions: &Vec<Vec<Vec<u8>>>| {
                let mut words = definitions.iter().flatten();
                words.any(|w| std::str::from_utf8(w).is_ok_and(|w| changed.contains(w)))
            };
            let more = both().filter(|(name, made)| !changed.contains(*name) && uses(made));
            let more: Vec<String> = more.map(|(name, _)| name.clone()).collect();
            if more.is_empty() {
                break;
            }
            changed.extend(more);
        }
        changed
    }
}

impl Lexed {
    fn new(text: Vec<u8>) -> Lexed {
        let tokens = Lexer::new(&text).tokens();
        Lexed { text, tokens }
    }

    fn token(&self, token: &Token) -> &[u8] {
        self.text.get(token.range.clone()).unwrap_or_default()
    }

    fn body(&self, name: &str, line: u64, next: Option<u64>) -> Option<Range<usize>> {
        let start = self.tokens.partition_point(|token| token.line < line);
        // `~T`, `f<int>` and `operator+` are several tokens.
        let name = name.trim_start_matches('~');
        let name = name.split('<').next().unwrap_or(name);
        let name = if name.starts_with("operator") {
            "operator"
        } else {
            name
        };
        let mut depth = 0u32;
        let mut named = false;
        // What was open where a conditional part began, of which only one branch counts.
        let mut conditions: Vec<u32> = Vec::new();
        let mut directive = 0;
        for (at, token) in self.tokens.iter().enumerate().skip(start) {
            if next.is_some_and(|next| token.line >= next) {
                return None;
            }
            let text = self.token(token);
            if token.directive != 0 {
                if directive != token.directive {
                    directive = token.directive;
                    let word = self.tokens.get(at.checked_add(1)?);
                    match word.map(|word| self.token(word)) {
                        Some(b"if" | b"ifdef" | b"ifndef") => conditions.push(depth),
                        Some(b"else" | b"elif") => depth = *conditions.last()?,
                        Some(b"endif") => drop(conditions.pop()?),
                        _ => {}
                    }
                }
                continue;
            }
            match text {
                b"{" => {
                    // Another function, if the name was made by a macro.
                    if !named {
                        return None;
                    }
                    depth = depth.checked_add(1)?;
                }
                b"}" => {
                    depth = depth.checked_sub(1)?;
                    let next = self.tokens.get(at.checked_add(1)?);
                    let next = next.map_or(&b""[..], |next| self.token(next));
                    // A constructor's `: a{1}, b{2} { ... }`.
                    if depth == 0 && !matches!(next, b"{" | b",") {
                        return conditions.is_empty().then_some(start..at.checked_add(1)?);
                    }
                }
                b";" if depth == 0 && !named => return None,
                _ => named |= text == name.as_bytes(),
            }
        }
        None
    }

    /// The macros that are defined: name and definition.
    fn macros(&self) -> Vec<(String, Vec<Vec<u8>>)> {
        let directives = self.tokens.chunk_by(|a, b| a.directive == b.directive);
        let defined = directives.filter_map(|tokens| {
            let mut words = tokens.iter().map(|token| self.token(token));
            let is = words.next() == Some(b"#") && words.next() == Some(b"define");
            let name = std::str::from_utf8(words.next().filter(|_| is)?).ok()?;
            Some((name.to_owned(), words.map(<[u8]>::to_vec).collect()))
        });
        defined.collect()
    }
}

/// C and C++ as far as needed to know what is a comment, and what is within a string.
struct Lexer<'t> {
    text: &'t [u8],
    at: usize,
    line: u64,
    directives: u32,
    /// In a directive.
    within: bool,
    /// At the beginning of a line, but for white space.
    fresh: bool,
}

impl<'t> Lexer<'t> {
    fn new(text: &'t [u8]) -> Self {
        Lexer {
            text,
            at: 0,
            line: 1,
            directives: 0,
            within: false,
            fresh: true,
        }
    }

    fn rest(&self) -> &'t [u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, count: usize) {
        let skipped = self.rest().get(..count).unwrap_or(self.rest());
        let lines = skipped.iter().filter(|&&b| b == b'\n').count();
        self.line = self.line.saturating_add(lines as u64);
        self.at = self.at.saturating_add(skipped.len());
    }

    fn tokens(mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        loop {
            let rest = self.rest();
            let length = match rest {
                [] => return tokens,
                [b'\n', ..] => {
                    (self.within, self.fresh) = (false, true);
                    self.skip(1);
                    continue;
                }
                [b'\\', b'\n', ..] => {
                    self.skip(2);
                    continue;
                }
                [b'\\', b'\r', b'\n', ..] => {
                    self.skip(3);
                    continue;
                }
                [b'/', b'*', ..] => {
                    let body = rest.get(2..).unwrap_or_default();
                    let end = memchr::memmem::find(body, b"*/").map_or(rest.len(), |end| end + 4);
                    self.skip(end);
                    continue;
                }
                [b'/', b'/', ..] => {
                    self.skip(line_end(rest));
                    continue;
                }
                [b, ..] if b.is_ascii_whitespace() => {
                    self.skip(1);
                    continue;
                }
                [quote @ (b'"' | b'\''), ..] => quoted(rest, *quote),
                [b, ..] if is_word(*b) => {
                    let length = word(rest);
                    let raw = rest.get(..length).is_some_and(|w| w.ends_with(b"R"));
                    let behind = rest.get(length..).unwrap_or_default();
                    match behind.first() {
                        Some(b'"') if raw && length <= 3 => length.saturating_add(raw_len(behind)),
                        _ => length,
                    }
                }
                _ => 1,
            };
            if self.fresh && rest.first() == Some(&b'#') {
                self.within = true;
                self.directives = self.directives.saturating_add(1);
            }
            self.fresh = false;
            let end = self.at.saturating_add(length).min(self.text.len());
            tokens.push(Token {
                line: self.line,
                range: self.at..end,
                directive: if self.within { self.directives } else { 0 },
            });
            self.skip(length);
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

/// The length of a name or a number; 1'000 is one.
fn word(text: &[u8]) -> usize {
    let number = text.first().is_some_and(u8::is_ascii_digit);
    let mut at = 0usize;
    while let Some(&byte) = text.get(at) {
        let next = text.get(at.saturating_add(1)).copied();
        let divides = number && byte == b'\'' && next.is_some_and(is_word);
        if !is_word(byte) && !divides {
            break;
        }
        at = at.saturating_add(1);
    }
    at.max(1)
}

/// Up to the end of the line, which a backslash moves to the next.
fn line_end(text: &[u8]) -> usize {
    let mut before = 0;
    for (at, &byte) in text.iter().enumerate() {
        if byte == b'\n' && before != b'\\' {
            return at;
        }
        before = byte;
    }
    text.len()
}

/// The length of a string or a character; one that does not end goes to the end of the line.
fn quoted(text: &[u8], quote: u8) -> usize {
    let mut escaped = true;
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'\n' => return at,
            _ if byte == quote => return at.saturating_add(1),
            _ => {}
        }
    }
    text.len()
}

/// The length of `"x(...)x"`.
fn raw_len(text: &[u8]) -> usize {
    let Some(open) = text.iter().take(20).position(|&b| b == b'(') else {
        return quoted(text, b'"');
    };
    let mark = text.get(1..open).unwrap_or_default();
    let end = [b")", mark, b"\""].concat();
    memchr::memmem::find(text, &end).map_or(text.len(), |at| at.saturating_add(end.len()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Two([&'static str; 2]);

    impl Texts for Two {
        fn text(&self, side: Side, _: &Path) -> Option<Vec<u8>> {
            let [old, new] = self.0;
            Some(if side == Side::Original { old } else { new }.into())
        }

        fn changed(&self) -> Vec<PathBuf> {
            vec!["x.c".into()]
        }

        fn shown(&self, path: &Path) -> PathBuf {
            path.to_owned()
        }

        fn line(&self, _: Side, _: &Path, number: u64) -> u64 {
            number
        }
    }

    fn body(text: &'static str, name: &str, line: u64, next: Option<u64>) -> Option<String> {
        let two = Two([text, text]);
        let files = Files::new(&two);
        let decl = Decl {
            name: name.to_owned(),
            key: name.to_owned(),
            file: "x.c".into(),
            line,
        };
        let body = files.body(Side::Original, &decl, next.into_iter())?;
        let words: Vec<_> = body.tokens().map(String::from_utf8_lossy).collect();
        Some(words.join(" "))
    }

    #[test]
    fn bodies_end_where_they_end() {
        let text = "int f(int x) /* { */\n{ // }\n  if (x == '}') return \"}\\\"}\" [0];\n  return 1; }\nint g;\n";
        assert_eq!(
            body(text, "f", 1, None).as_deref(),
            Some("int f ( int x ) { if ( x = = '}' ) return \"}\\\"}\" [ 0 ] ; return 1 ; }")
        );
        let conditional = "int f()\n{\n#if A\nif (a) {\n#else\nif (b) {\n#endif\n}\n}\nint g() { }";
        let found = body(conditional, "f", 1, Some(10)).unwrap();
        assert!(found.ends_with("# endif } }"), "{found}");
    }

    #[test]
    fn bodies_of_cpp() {
        let text = "T::T() : a{1}, b{2} { f(); }\nT::~T() { g(); }\nT operator+(T a) { return a; }";
        for (name, line, end) in [
            ("T", 1, "{ f ( ) ; }"),
            ("~T", 2, "{ g ( ) ; }"),
            ("operator+", 3, "{ return a ; }"),
        ] {
            let found = body(text, name, line, None).unwrap();
            assert!(found.ends_with(end), "{found}");
        }
    }

    #[test]
    fn what_is_not_sure_is_not_known() {
        assert_eq!(body("DEFINE(x) { }", "do_x", 1, None), None);
        assert_eq!(body("int f(void);\nint g() { }", "f", 2, None), None);
        assert_eq!(body("int f() {\nint g() { }", "f", 1, Some(2)), None);
        assert_eq!(body("int f() {", "f", 1, None), None);
        assert_eq!(body("", "f", 1, None), None);
        assert_eq!(body("int f() { } }", "f", 9, None), None);
    }

    #[test]
    fn strings_of_all_kinds() {
        let raw = "int f() { return *R\"x(}\")x\" + 1'000 + u8\"}\"[0]; } int g";
        let found = body(raw, "f", 1, None).unwrap();
        assert!(found.contains("R\"x(}\")x\"") && found.contains("1'000"));
        assert!(found.ends_with("; }"), "{found}");
    }

    #[test]
    fn macros_and_those_made_of_them() {
        let old = "#define A 1\n#define B (A + \\\n 1)\n#define C 3\n#define D 1\n";
        let new = "# define A 2 // more\n#define B (A + 1)\n#define C 3 /* three */\n#define E A\n";
        let two = Two([old, new]);
        let changed = Files::new(&two).changed_macros();
        let changed: Vec<&str> = changed.iter().map(String::as_str).collect();
        assert_eq!(changed, ["A", "B", "D", "E"]);
    }
}
