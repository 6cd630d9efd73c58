//! Some of the security fixes of `make cve`, each built into a patch and loaded into the program that lacks it.

use livegraft_build::capture::DebianError;
use livegraft_scenarios::cve::{self, Outcome, Places};
use livegraft_scenarios::{note, raise_open_files, require};

/// The fixes of a package whose file names have one of these words in them: what must come of them comes of them.
fn hold(package: &str, words: &[&str]) {
    raise_open_files();
    let places = Places::of(package).expect("a place for builds");
    let rows = cve::rows().expect("the list of fixes");
    let package = cve::package(package).expect("one of the packages");
    for word in words {
        let mut rows = rows.iter();
        let row = rows.find(|row| row.package == package.name() && row.patch.contains(word));
        let row = row.expect("a fix of that name");
        let source = places.source(row);
        let there = !matches!(
            source,
            Err(DebianError::Fetch { .. } | DebianError::Gone { .. })
        );
        let what = format!("Debian's source of {} {}", row.package, row.version);
        if !require(&what, there) {
            return;
        }
        let report = cve::run(package, row);
        let came = match &report.outcome {
            Outcome::Loaded => format!("loaded, {} functions", report.replaced.len()),
            other => format!("{other:?}"),
        };
        note(&format!("{} {word}: {came}", row.package));
        assert_eq!(report.unexpected, None, "{}: {came}", row.patch);
    }
}

/// The first makes a union larger of which objects live on: a trap.
#[test]
fn dnsmasq() {
    hold("dnsmasq", &["CVE-2026-2291", "CVE-2026-4893"]);
}

#[test]
fn redis() {
    hold("redis", &["CVE-2024-51741"]);
}

/// A library, in a program of ours. Its line numbers are arguments of what is inlined everywhere.
#[test]
fn expat() {
    hold("expat", &["CVE-2024-45490"]);
}
