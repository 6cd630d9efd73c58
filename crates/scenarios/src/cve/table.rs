//! docs/cve.md.

use super::{Outcome, Report};

const HEAD: &str = "# Real security fixes as patches

`make cve` writes this page (`make cve ROWS=redis`, `ROWS=nginx/2024-7347` for a part; what was run with this livegraft is not run again).
`tests/cve/pairs.tsv` lists security fixes that Debian 12 carries as files in debian/patches: B changes bodies only, F adds, removes or retypes functions, M changes a macro or enum, S a struct.
The original is Debian's tree without that one fix, built with Debian's flags; `livegraft build` makes the patch of the fix and proves that it fits; the original runs under load while the patch is loaded, used and unloaded, after which its code is compared with its file.
Libraries run in programs of ours (`tests/cve`). `moved in`: from the redirection to the last task, the longest of the program's processes. These are figures of single runs, on a machine with other work.

";

/// The page of these reports.
pub fn table(reports: &[Report]) -> String {
    let loaded: Vec<&Report> = (reports.iter())
        .filter(|report| report.outcome == Outcome::Loaded)
        .collect();
    let parts = [
        HEAD.to_owned(),
        summary(reports),
        lines(reports),
        holes(&loaded),
        caveats(&loaded),
        not_entered(&loaded),
    ];
    parts.concat()
}

fn summary(reports: &[Report]) -> String {
    let is = |outcome: fn(&Outcome) -> bool| reports.iter().filter(|r| outcome(&r.outcome)).count();
    let loaded = is(|outcome| *outcome == Outcome::Loaded);
    let no_code = is(|outcome| *outcome == Outcome::NoCode);
    let refused = is(|outcome| matches!(outcome, Outcome::Refused(_)));
    let failed = is(|outcome| matches!(outcome, Outcome::Failed(_)));
    let code = reports.len() - no_code;
    let percent = (100 * loaded).checked_div(code).unwrap_or(0);
    let failed = match failed {
        0 => String::new(),
        failed => format!(" {failed} FAILED."),
    };
    format!(
        "{} fixes: {no_code} change no code; of the other {code}, {loaded} load ({percent}%) and {refused} are refused.{failed}\n\n",
        reports.len(),
    )
}

fn lines(reports: &[Report]) -> String {
    let mut text = String::from(
        "| package | fix | kind | came of it | functions | proof | moved in | longest stop | requests, failed |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for report in reports {
        let came = match &report.outcome {
            Outcome::Loaded => "loaded".to_owned(),
            Outcome::NoCode => "no code changes".to_owned(),
            Outcome::Refused(why) => format!("refused: {}", escaped(why)),
            Outcome::Failed(why) => format!("FAILED: {}", escaped(why)),
        };
        let rest = match &report.outcome {
            Outcome::Loaded => format!(
                "{} | {} | {} us, {} tasks | {} us | {}, {}",
                functions(report),
                report.proof,
                report.transition_us,
                report.tasks,
                report.longest_stop_us,
                report.requests,
                report.failed
            ),
            _ => " | | | | ".to_owned(),
        };
        text += &format!(
            "| {} | {} | {} | {came} | {rest} |\n",
            report.package,
            fix(report),
            report.kind
        );
    }
    text
}

fn holes(loaded: &[&Report]) -> String {
    let mut text = String::from(
        "\nThe holes themselves, the same input each time:\n\n| package | fix | without the patch | with it |\n|---|---|---|---|\n",
    );
    for report in loaded {
        if let Some((without, with)) = &report.hole {
            text += &format!(
                "| {} | {} | {} | {} |\n",
                report.package,
                fix(report),
                escaped(without),
                escaped(with)
            );
        }
    }
    text
}

fn caveats(loaded: &[&Report]) -> String {
    let mut text =
        String::from("\nLoaded, with something that livegraft can't see and a user must know:\n\n");
    let before = text.len();
    for report in loaded {
        if let Some(caveat) = &report.caveat {
            text += &format!(
                "- {} {}: {}\n",
                report.package,
                fix(report),
                escaped(caveat)
            );
        }
    }
    match text.len() == before {
        true => String::new(),
        false => text,
    }
}

fn not_entered(loaded: &[&Report]) -> String {
    let mut text = String::new();
    for report in loaded {
        let never = |name: &&String| !report.entered.contains(name);
        let never: Vec<String> = (report.replaced.iter().filter(never))
            .map(|name| format!("`{name}`"))
            .collect();
        if !never.is_empty() {
            text += &format!(
                "- {} {}: {}\n",
                report.package,
                fix(report),
                never.join(", ")
            );
        }
    }
    match text.is_empty() {
        true => text,
        false => format!(
            "\nReplaced, but not entered by what uses the programs here (counted by uprobes before the load, the holes' inputs not among it):\n\n{text}"
        ),
    }
}

fn fix(report: &Report) -> &str {
    report.patch.trim_end_matches(".patch")
}

fn functions(report: &Report) -> String {
    const MOST: usize = 4;
    let mut names: Vec<String> = (report.replaced.iter().take(MOST))
        .map(|name| format!("`{name}`"))
        .collect();
    if report.replaced.len() > MOST {
        names.push(format!("{} more", report.replaced.len() - MOST));
    }
    if report.added > 0 {
        names.push(format!("{} new", report.added));
    }
    names.join(", ")
}

/// One line that is no markup.
fn escaped(text: &str) -> String {
    const LONGEST: usize = 600;
    let mut plain = String::new();
    for c in text.chars().take(LONGEST) {
        match c {
            '|' => plain.push_str("\\|"),
            '<' => plain.push_str("&lt;"),
            '`' => plain.push('\''),
            c if c.is_whitespace() => plain.push(' '),
            c if c.is_control() || c == char::REPLACEMENT_CHARACTER => plain.push('?'),
            c => plain.push(c),
        }
    }
    plain
}
