//! Line numbers that a diff does not move.
//!
//! Every line that a diff adds or takes away gives all lines below it other numbers, and with them the code that knows its
//! line: `__LINE__` in assertions and logs, `__builtin_LINE`, names and states that are made of it. So the patched files
//! are given to the compiler with `#line` directives: what the diff leaves alone keeps the number that it has in the
//! original. That these change nothing else is proven by what the preprocessor makes of both.

use std::time::{Duration, Instant};

use similar::{Algorithm, DiffOp, capture_diff_slices_deadline};

/// How long two files may be compared. What has not been found the same by then counts as changed.
const LONGEST: Duration = Duration::from_secs(5);

/// The patched text, numbered like the original. `None` if it is so already, or has line directives of its own.
pub(super) fn numbered(original: &[u8], patched: &[u8]) -> Option<Vec<u8>> {
    let old: Vec<&[u8]> = original.split_inclusive(|b| *b == b'\n').collect();
    let new: Vec<&[u8]> = patched.split_inclusive(|b| *b == b'\n').collect();
    let wanted = numbers(&old, &new);
    let outside = outside(patched);
    let mut text = Vec::with_capacity(patched.len() + 256);
    let mut next = 1;
    let mut moved = false;
    // For each open #if: whether a directive was written since, which counts in one of its branches only.
    let mut open: Vec<bool> = Vec::new();
    let mut again = false;
    for ((line, number), outside) in new.iter().zip(wanted).zip(outside) {
        let directive = if outside { directive(line) } else { None };
        if directive.is_some_and(|d| d == b"line" || d.first().is_some_and(u8::is_ascii_digit)) {
            return None;
        }
        if outside && (number != next || again) {
            text.extend(format!("#line {number}\n").as_bytes());
            open.fill(true);
            (next, moved, again) = (number, true, false);
        }
        text.extend(*line);
        next += 1;
        match directive {
            Some(b"if" | b"ifdef" | b"ifndef") => open.push(false),
            Some(b"else" | b"elif" | b"elifdef" | b"elifndef") => {
                again |= open.last().copied().unwrap_or(false);
            }
            Some(b"endif") => again |= open.pop().unwrap_or(false),
            _ => {}
        }
    }
    moved.then_some(text)
}

/// The number that each line of the new text should have. What is left of a line that was changed keeps its number; what
/// is added has the number that it has in the new text, after a power of ten that no line of either reaches: so no two
/// lines have one number.
fn numbers(old: &[&[u8]], new: &[&[u8]]) -> Vec<usize> {
    let mut base = 1000;
    while base <= old.len().max(new.len()) {
        base *= 10;
    }
    let mut numbers: Vec<usize> = (1..=new.len()).map(|line| base + line).collect();
    let deadline = Some(Instant::now() + LONGEST);
    for op in capture_diff_slices_deadline(Algorithm::Patience, old, new, deadline) {
        let (from, to, len) = match op {
            DiffOp::Equal {
                old_index,
                new_index,
                len,
            } => (old_index, new_index, len),
            DiffOp::Replace {
                old_index,
                old_len,
                new_index,
                new_len,
            } => (old_index, new_index, old_len.min(new_len)),
            DiffOp::Insert { .. } | DiffOp::Delete { .. } => continue,
        };
        for (step, number) in numbers.iter_mut().skip(to).take(len).enumerate() {
            *number = from + step + 1;
        }
    }
    numbers
}

/// The name of a preprocessor directive.
fn directive(line: &[u8]) -> Option<&[u8]> {
    let name = line
        .trim_ascii_start()
        .strip_prefix(b"#")?
        .trim_ascii_start();
    let end = name.iter().position(|b| !b.is_ascii_alphanumeric());
    Some(&name[..end.unwrap_or(name.len())])
}

/// For each line: does it begin outside of comments, literals, and lines that a backslash continues?
fn outside(text: &[u8]) -> Vec<bool> {
    let mut lines = Vec::new();
    let mut at = 0;
    // Where what we are in ends.
    let mut within = 0;
    let mut comment = false;
    while at < text.len() {
        if at == 0 || text[at - 1] == b'\n' {
            let continued = at != 0 && continues(&text[..at - 1]);
            comment &= continued;
            lines.push(!continued && within <= at);
        }
        if within > at || comment {
            at += 1;
            continue;
        }
        match &text[at..] {
            [b'/', b'/', ..] => comment = true,
            [b'/', b'*', ..] => {
                let end = memchr::memmem::find(&text[at + 2..], b"*/");
                within = end.map_or(text.len(), |end| at + 2 + end + 2);
            }
            _ => within = literal(text, at).unwrap_or(at),
        }
        at += 1;
    }
    lines
}

/// Does the last line of a text end in a backslash? Compilers let white space follow it.
fn continues(line: &[u8]) -> bool {
    let begin = memchr::memrchr(b'\n', line).map_or(0, |end| end + 1);
    line[begin..].trim_ascii_end().ends_with(b"\\")
}

/// The end of the string or character that begins with the quote at `at`.
fn literal(text: &[u8], at: usize) -> Option<usize> {
    let quote = *text.get(at)?;
    if quote != b'"' && quote != b'\'' {
        return None;
    }
    let start = text[..at]
        .iter()
        .rposition(|b| !(b.is_ascii_alphanumeric() || b"_'.".contains(b)))
        .map_or(0, |before| before + 1);
    let before = &text[start..at];
    if quote == b'\'' && before.first().is_some_and(u8::is_ascii_digit) {
        return None; // 1'000
    }
    if quote == b'"' && matches!(before, b"R" | b"LR" | b"uR" | b"UR" | b"u8R") {
        let open = text[at..].iter().position(|b| *b == b'(')?;
        let mut close = vec![b')'];
        close.extend(&text[at + 1..at + open]);
        close.push(b'"');
        let end = memchr::memmem::find(&text[at + open..], &close);
        return Some(end.map_or(text.len(), |end| at + open + end + close.len()));
    }
    let mut end = at + 1;
    while let Some(byte) = text.get(end) {
        match byte {
            b'\\' if text.get(end + 1..end + 3) == Some(b"\r\n") => end += 3,
            b'\\' => end += 2,
            b'\n' => return Some(end),
            byte if byte == &quote => return Some(end + 1),
            _ => end += 1,
        }
    }
    Some(text.len())
}

/// Are these the same to the compiler, but for the lines on which it all stands? Both are the preprocessor's.
pub(super) fn same(one: &[u8], other: &[u8]) -> bool {
    plain(one) == plain(other)
}

/// A preprocessed text without line markers, white space made one space.
fn plain(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    let mut space = false;
    while let Some(byte) = text.get(at) {
        let begins = at == 0 || text[at - 1] == b'\n';
        if begins && *byte == b'#' {
            let end = memchr::memchr(b'\n', &text[at..]).map_or(text.len(), |end| at + end);
            let line = &text[at..end];
            let marker = directive(line)
                .is_some_and(|d| d == b"line" || d.first().is_some_and(u8::is_ascii_digit));
            if !marker {
                // A pragma is a line.
                out.push(b'\n');
                out.extend(line);
                out.push(b'\n');
            }
            space = true;
            at = end + 1;
            continue;
        }
        if byte.is_ascii_whitespace() {
            space = true;
            at += 1;
            continue;
        }
        if space && out.last().is_some_and(|last| *last != b'\n') {
            out.push(b' ');
        }
        space = false;
        let end = literal(text, at).unwrap_or(at + 1);
        out.extend(&text[at..end]);
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(original: &str, patched: &str) -> Option<String> {
        let text = numbered(original.as_bytes(), patched.as_bytes());
        text.map(|text| String::from_utf8(text).expect("text"))
    }

    #[test]
    fn what_is_left_alone_keeps_its_number() {
        assert_eq!(text("a\nb\nc\n", "a\nB\nc\n"), None);
        assert_eq!(
            text("a\nb\n", "a\nb\nnew\n"),
            Some("a\nb\n#line 1003\nnew\n".into())
        );
        assert_eq!(
            text("a\nb\nc\n", "a\nnew\nb\nc\n"),
            Some("a\n#line 1002\nnew\n#line 2\nb\nc\n".into())
        );
        assert_eq!(
            text("a\nb\nc\nd\n", "a\nd\n"),
            Some("a\n#line 4\nd\n".into())
        );
        assert_eq!(
            text("a\nb\nc\n", "a\nB\nnew\nc\n"),
            Some("a\nB\n#line 1003\nnew\n#line 3\nc\n".into())
        );
        let many = "x\n".repeat(1000);
        let longer = format!("{many}y\n");
        assert!(text(&many, &longer).is_some_and(|t| t.ends_with("#line 11001\ny\n")));
    }

    #[test]
    fn a_directive_stands_where_it_is_one() {
        // Not in a comment, after a backslash, in a literal; then the next line that can have it does.
        for (start, new, end) in [
            ("/* a", "new", "b */"),
            ("#define X \\", "new \\", "b"),
            ("// a \\", "new \\", "b"),
            ("x = R\"-(a", "new", "\" )\" )-\";"),
            ("x = \"a\\", "new\\", "b\";"),
        ] {
            let old = format!("{start}\n{end}\nc\n");
            let text = text(&old, &format!("{start}\n{new}\n{end}\nc\n"));
            assert_eq!(text, Some(format!("{start}\n{new}\n{end}\n#line 3\nc\n")));
        }
        for line in ["'\"'", "1'000", "\"/*\"", "// \"", "'\\''", "\"\\\\\""] {
            let old = format!("{line}\nb\n");
            let new = format!("{line}\nnew\nb\n");
            let found = text(&old, &new);
            assert_eq!(
                found,
                Some(format!("{line}\n#line 1002\nnew\n#line 2\nb\n"))
            );
        }
    }

    #[test]
    fn a_branch_that_is_left_out_is_made_good() {
        assert_eq!(
            text(
                "#if 0\na\n#else\nb\n#endif\nc\n",
                "#if 0\nnew\na\n#else\nb\n#endif\nc\n"
            ),
            Some(
                "#if 0\n#line 1002\nnew\n#line 2\na\n#else\n#line 4\nb\n#endif\n#line 6\nc\n"
                    .into()
            )
        );
        assert_eq!(
            text("#if 1\n#endif\nc\n", "new\n#if 1\n#endif\nc\n"),
            Some("#line 1001\nnew\n#line 1\n#if 1\n#endif\nc\n".into())
        );
    }

    #[test]
    fn directives_of_its_own_are_left() {
        for line in ["#line 7", "# 7 \"y\"", "  #  line 7"] {
            assert_eq!(text("a\n", &format!("new\n{line}\na\n")), None);
        }
    }

    #[test]
    fn only_lines_are_no_difference() {
        let of = |one: &str, other: &str| same(one.as_bytes(), other.as_bytes());
        assert!(of("# 1 \"a\"\nx  y\n\nz\n", "x\n# 9 \"b\" 2\n  y z"));
        assert!(of("x\n# 1 \"a\"\ny", "x y"));
        assert!(!of("xy", "x y"));
        assert!(!of("\"x y\"", "\"x  y\""));
        assert!(!of("'  '", "' '"));
        assert!(!of("R\"(\n# 1 \"a\"\n)\"", "R\"(\n# 2 \"a\"\n)\""));
        assert!(!of("#pragma a\nb", "#pragma a b"));
        assert!(!of("#pragma a\n#pragma b\n", "#pragma b\n#pragma a\n"));
        assert!(of("a\n#pragma b\nc\n", "# 1 \"a\"\na\n\n#pragma b\n  c"));
    }
}
