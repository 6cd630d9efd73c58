//! expat, in tests/cve/expat.c.

use super::host::{About, Exchange, Host, Library};
use super::{Case, Expected, Package, Row, Service};
use std::path::Path;

/// See the module.
pub struct Expat;

const FILE: &str = "expat/lib/.libs/libexpat.so.1.8.10";

const LIBRARY: Library = Library {
    name: "expat",
    headers: &["expat/lib"],
    files: &[FILE],
    load: &[
        Exchange::new(
            "parse",
            "<!DOCTYPE a [<!ENTITY e 'four'>]><a><b c='d'/>&e;</a>",
            "2 elements, 4 characters",
        ),
        Exchange::new("parse", "<a>\n<b></a>", "mismatched tag in line 2"),
        Exchange::new(
            "more",
            "<entry level='info'>something has happened</entry>",
            "1 elements, 22 characters",
        ),
    ],
};

impl Package for Expat {
    fn name(&self) -> &'static str {
        "expat"
    }

    fn configure(&self) -> &'static str {
        "cd expat && ./buildconf.sh && ./configure --without-docbook --without-xmlwf --without-examples --without-tests \
         CFLAGS='-g -O2 -fstack-protector-strong -Wformat -Werror=format-security -Wall' \
         CPPFLAGS='-Wdate-time -D_FORTIFY_SOURCE=2' LDFLAGS='-Wl,-Bsymbolic-functions -Wl,-z,relro'"
    }

    fn make(&self) -> &'static str {
        "make -j2 -C expat/lib"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let expected = match row.patch.trim_end_matches(".patch") {
            "CVE-2024-45490" => Expected::Loads,
            // What they add is for machines of 32 bits.
            "CVE-2024-45491" | "CVE-2024-45492" => Expected::NoCode,
            // Parsers live on, and the entities that they have read; both get new members.
            "expat-2.5.0-CVE-2024-8176" => Expected::Refused(&["struct ENTITY"]),
            _ => return None,
        };
        Some(Case {
            program: FILE,
            expected,
            shows_hole: expected == Expected::Loads,
        })
    }

    fn start(&self, _: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        let about = About {
            exercise: vec![
                Exchange::new(
                    "buffer",
                    "<list><item>one</item><item>two</item></list>",
                    "3 elements, 6 characters",
                ),
                Exchange::new("buffer", "<list>\n<item>", "no element found in line 2"),
            ],
            hole: Some(Exchange::new(
                "negative",
                "",
                "-1 bytes: invalid argument; `<a>` and `</a>`: 1 elements, 0 characters",
            )),
        };
        Ok(Box::new(Host::start(LIBRARY, about, tree, dir)?))
    }
}
