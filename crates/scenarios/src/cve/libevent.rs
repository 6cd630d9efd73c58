//! libevent, in tests/cve/libevent.c.

use super::host::{About, Exchange, Host, Library};
use super::{Case, Expected, Package, Row, Service};
use std::path::Path;

/// See the module.
pub struct Libevent;

const FILE: &str = ".libs/libevent-2.1.so.7.0.1";

const LIBRARY: Library = Library {
    name: "libevent",
    headers: &["include"],
    files: &[FILE],
    load: &[
        Exchange::new(
            "http",
            "GET /list HTTP/1.1\r\nHost: here\r\nOne: Two\r\n\r\n",
            "HTTP/1.1 200 OK\\r\\nHost=here One=Two and 0 bytes",
        ),
        Exchange::new("tags", "some text", TAGS),
        Exchange::new("reference", "some text", "0, 9 bytes: some text"),
    ],
};

const TAGS: &str = "3 123456, 0 some text, 70000 of 1 bytes, 0 left";

impl Package for Libevent {
    fn name(&self) -> &'static str {
        "libevent"
    }

    fn configure(&self) -> &'static str {
        "autoreconf -fi && ./configure --disable-libevent-regress --disable-samples --disable-openssl --disable-static \
         CFLAGS='-g -O2 -fstack-protector-strong -Wformat -Werror=format-security' \
         CPPFLAGS='-Wdate-time -D_FORTIFY_SOURCE=2' LDFLAGS='-Wl,-z,relro -Wl,-z,now'"
    }

    fn make(&self) -> &'static str {
        "make -j2 include/event2/event-config.h libevent.la"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let expected = match row.patch.trim_end_matches(".patch") {
            "CVE-2026-63379" | "CVE-2026-63381" | "CVE-2026-63383" | "CVE-2026-63384"
            | "CVE-2026-63385" => Expected::Loads,
            // Open connections have no room for the longer address; what is said first is what contains one.
            "CVE-2026-63388" => {
                Expected::Refused(&["struct bufferevent_", "objects of it that live on"])
            }
            _ => return None,
        };
        Some(Case {
            program: FILE,
            expected,
            shows_hole: about(row).hole.is_some(),
        })
    }

    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        Ok(Box::new(Host::start(LIBRARY, about(row), tree, dir)?))
    }
}

fn about(row: &Row) -> About {
    let (exercise, hole) = match row.patch.trim_end_matches(".patch") {
        // What follows a body is no header.
        "CVE-2026-63379" => (
            vec![Exchange::new(
                "http",
                "POST /list HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                "HTTP/1.1 200 OK\\r\\nHost=here Transfer-Encoding=chunked and 5 bytes",
            )],
            Some(Exchange::new(
                "http",
                "POST /list HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-User: root\r\n\r\n",
                "HTTP/1.1 200 OK\\r\\nHost=here Transfer-Encoding=chunked and 5 bytes",
            )),
        ),
        "CVE-2026-63381" => (
            vec![Exchange::new(
                "reference",
                "something longer",
                "0, 16 bytes: something longer",
            )],
            Some(Exchange::new(
                "reference-piece",
                "something longer",
                "0, 16 bytes: something longer",
            )),
        ),
        // One byte too many is read and looked at, to no effect that could be seen.
        "CVE-2026-63383" => (vec![Exchange::new("tags", "some text", TAGS)], None),
        "CVE-2026-63384" => (
            vec![Exchange::new("tags", "some text", TAGS)],
            Some(Exchange::new("long-tag", "", "a length of -1")),
        ),
        // A value that says it goes on in the next line.
        "CVE-2026-63385" => (
            vec![Exchange::new(
                "http",
                "GET /echo?value=Two HTTP/1.1\r\nHost: here\r\n\r\n",
                "HTTP/1.1 200 OK\\r\\nEcho: Two\\r\\ndone",
            )],
            Some(Exchange::new(
                "http",
                "GET /echo?value=Two%0d%0a%20Three HTTP/1.1\r\nHost: here\r\n\r\n",
                "HTTP/1.1 200 OK\\r\\nrefused",
            )),
        ),
        _ => (Vec::new(), None),
    };
    About { exercise, hole }
}
