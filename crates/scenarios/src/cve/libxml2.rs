//! libxml2, in tests/cve/libxml2.c, and its module for Python, in tests/cve/python-libxml2.py.

use super::host::{About, Exchange, Host, Library};
use super::{Case, Expected, Package, Row, Service};
use crate::plan::root;
use std::path::Path;
use std::process::Command;

/// See the module.
pub struct Libxml2;

const FILE: &str = ".libs/libxml2.so.2.9.14";
const MODULE: &str = "python/.libs/libxml2mod.so";

const LIBRARY: Library = Library {
    name: "libxml2",
    headers: &["include"],
    files: &[FILE],
    load: &[
        Exchange::new(
            "parse",
            "<a><b c='d'/></a>",
            "<?xml version=\"1.0\"?>\n<a><b c=\"d\"/></a>\n",
        ),
        Exchange::new("xpath", "count(//entry) + 1", "2"),
        Exchange::new("renew", "", ""),
    ],
};

const PYTHON: &[Exchange] = &[Exchange::new("xpath", "/log/entry", "entry")];

impl Package for Libxml2 {
    fn name(&self) -> &'static str {
        "libxml2"
    }

    fn configure(&self) -> &'static str {
        "autoreconf -fi && ./configure --disable-static --with-history --with-icu --with-python=/usr/bin/python3 \
         CFLAGS='-g -O3 -fstack-protector-strong -Wformat -Werror=format-security -Wall' \
         CPPFLAGS='-Wdate-time -D_FORTIFY_SOURCE=2' LDFLAGS='-Wl,-z,relro -Wl,-z,now'"
    }

    fn make(&self) -> &'static str {
        "make -j2 libxml2.la; \
         make -j2 -C python PYTHON_INCLUDES=\"$(/usr/bin/python3-config --includes)\" PYTHON_LIBS= \
         libxml2mod_la_LIBADD='$(mylibs)' libxml2-py.h libxml2-py.c libxml2-export.c libxml2mod.la"
    }

    fn case(&self, row: &Row) -> Option<Case> {
        let about = about(row)?;
        Some(Case {
            program: match is_python(row) {
                true => MODULE,
                false => FILE,
            },
            expected: Expected::Loads,
            shows_hole: about.hole.is_some(),
        })
    }

    fn caveat(&self, row: &Row) -> Option<&'static str> {
        row.patch.starts_with("CVE-2022-40304").then_some(
            "the new xmlFreeEntity frees what the old xmlCreateEntity has put into the dictionary, so a document with an \
             entity of less than five bytes, or an external one, that was read before ends the process when it is freed \
             (free(): invalid pointer); without its change of xmlFreeEntity the fix does no harm",
        )
    }

    fn start(&self, row: &Row, tree: &Path, dir: &Path) -> Result<Box<dyn Service>, String> {
        let about = about(row).unwrap_or_default();
        if !is_python(row) {
            return Ok(Box::new(Host::start(LIBRARY, about, tree, dir)?));
        }
        let mut python = Command::new("/usr/bin/python3");
        python.arg(root().join("tests/cve/python-libxml2.py"));
        let modules = [tree.join("python"), tree.join("python/.libs")];
        let modules = std::env::join_paths(modules).map_err(|e| e.to_string())?;
        python
            .env("PYTHONPATH", modules)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        python.env("LD_LIBRARY_PATH", tree.join(".libs"));
        Ok(Box::new(Host::run(python, PYTHON, about, dir)?))
    }
}

/// The fix is in the module, an object of its own.
fn is_python(row: &Row) -> bool {
    row.patch.starts_with("CVE-2025-32414")
}

const PARSED: &str = "<?xml version=\"1.0\"?>\n\
    <!DOCTYPE a PUBLIC \"-//x//y\" \"x.dtd\" [\n<!ENTITY e \"value\">\n<!ENTITY % p \"x\">\n\
    <!ATTLIST a t (one | two) \"one\">\n<!-- c --><?p i?>]>\n\
    <a xmlns:q=\"urn:q\" b=\"x value &#xE9;\"><![CDATA[<&>]]><q:b/><éa é=\"1\"/>value<!-- comment --><?pi data?></a>\n";

const ISSUE_491: &str = "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema' xmlns='urn:t' targetNamespace='urn:t'>\
    <xs:complexType name='Base'><xs:simpleContent><xs:extension base='xs:int'/></xs:simpleContent></xs:complexType>\
    <xs:complexType name='Child'><xs:complexContent><xs:extension base='Base'><xs:sequence>\
    <xs:element name='bad' type='xs:int' minOccurs='0'/>\
    </xs:sequence></xs:extension></xs:complexContent></xs:complexType>\
    <xs:element name='Root' type='Child'/></xs:schema>\x0c<a/>";

const EXTENSION: &str = "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema'>\
    <xs:complexType name='Base'><xs:sequence><xs:element name='one'/></xs:sequence></xs:complexType>\
    <xs:complexType name='Child'><xs:complexContent><xs:extension base='Base'><xs:sequence>\
    <xs:element name='two'/></xs:sequence></xs:extension></xs:complexContent></xs:complexType>\
    <xs:element name='a' type='Child'/></xs:schema>\x0c<a><one/><two/></a>";

/// Keys of parts within parts: a key that is there twice goes to the list of such, at its own part and one further up.
const KEYS: &str = "<xs:schema xmlns:xs='http://www.w3.org/2001/XMLSchema'><xs:element name='part'><xs:complexType>\
    <xs:sequence><xs:element ref='part' minOccurs='0' maxOccurs='unbounded'/>\
    <xs:element name='item' minOccurs='0' maxOccurs='unbounded'><xs:complexType><xs:attribute name='id'/>\
    </xs:complexType></xs:element><xs:element name='ref' minOccurs='0' maxOccurs='unbounded'><xs:complexType>\
    <xs:attribute name='to'/></xs:complexType></xs:element></xs:sequence></xs:complexType>\
    <xs:key name='k'><xs:selector xpath='item'/><xs:field xpath='@id'/></xs:key>\
    <xs:keyref name='r' refer='k'><xs:selector xpath='ref'/><xs:field xpath='@to'/></xs:keyref></xs:element></xs:schema>\
    \x0c<part><part><item id='1'/><item id='2'/><ref to='1'/></part><part><item id='2'/><item id='3'/></part>\
    <item id='3'/><item id='1'/><item id='4'/><ref to='4'/><ref to='2'/><ref to='9'/></part>";

const KEYS_ANSWER: &str = "invalid; 2 errors: Element 'ref': More than one match found for key-sequence ['2'] of keyref 'r'.";

const CATALOG: &str = "plain.xml\x0c<catalog xmlns='urn:oasis:names:tc:entity:xmlns:xml:catalog'>\
    <uri name='urn:a' uri='file:///a'/><nextCatalog catalog='other.xml'/></catalog>\x0curn:a";

const RECURSIVE: &str = "recursive.xml\x0c<catalog xmlns='urn:oasis:names:tc:entity:xmlns:xml:catalog'>\
    <delegateURI uriStartString='/foo' catalog='recursive.xml'/></catalog>\x0c/foo.ent";

const REPEATED: &str = "repeated.xml\x0c<catalog xmlns='urn:oasis:names:tc:entity:xmlns:xml:catalog'>\
    <uri name='urn:a' uri='file:///a'/><nextCatalog catalog='other.xml'/><nextCatalog catalog='./other.xml'/>\
    <nextCatalog catalog='././other.xml'/></catalog>\x0curn:a";

const INCLUDE: &str =
    "<b/>\x0c<a xmlns:xi='http://www.w3.org/2001/XInclude'><xi:include href='included.xml'/></a>";
const INCLUDE_NOTHING: &str = "<!DOCTYPE a [<!ELEMENT a ANY><!ATTLIST a xmlns:xi CDATA #IMPLIED>\
    <!ELEMENT xi:include ANY><!ATTLIST xi:include href CDATA #IMPLIED><!ELEMENT b ANY>]>\
    <a xmlns:xi='http://www.w3.org/2001/XInclude'><xi:include href='nothing.xml'><b/></xi:include></a>";
const INCLUDE_FAILED: &str =
    "a a xi:include b xi:include a 0; 2 errors: failed to load external entity \"nothing.xml\"";

const INCLUDED: &str =
    "1: <?xml version=\"1.0\"?>\n<a xmlns:xi=\"http://www.w3.org/2001/XInclude\"><b/></a>\n";

fn schematron(path: &str, text: &str) -> String {
    format!(
        "<sch:schema xmlns:sch='http://purl.oclc.org/dsdl/schematron'><sch:pattern id=''><sch:rule context='b'>\
         <sch:report test='not(0)'><sch:name path='{path}'/></sch:report></sch:rule></sch:pattern></sch:schema>\x0c{text}"
    )
}

/// Content that its DTD does not allow, with a name of two long parts.
fn long_content() -> String {
    let (prefix, name) = ("p".repeat(2600), "n".repeat(2600));
    format!(
        "<!DOCTYPE a [<!ELEMENT a (b)><!ELEMENT b EMPTY><!ELEMENT {prefix}:{name} EMPTY>\
         <!ATTLIST a xmlns:{prefix} CDATA #IMPLIED>]><a xmlns:{prefix}='urn:p'><b/><{prefix}:{name}/></a>"
    )
}

/// What uses the functions of the row's fix, and what the fix is against.
fn about(row: &Row) -> Option<About> {
    let (exercise, hole) = match row.patch.trim_end_matches(".patch") {
        "CVE-2022-40303-Fix-integer-overflows-with-XML_PARSE_" => (
            vec![Exchange::new(
                "parse",
                "<?xml version='1.0'?><!DOCTYPE a PUBLIC '-//x//y' 'x.dtd' [<!ENTITY e 'value'><!ENTITY % p 'x'>\
                 <!ATTLIST a t (one|two) 'one'><!-- c --><?p i?>]><a b='x &e; é' xmlns:q='urn:q'><![CDATA[<&>]]>\
                 <q:b/><éa é='1'/>&e;<!-- comment --><?pi data?></a>",
                PARSED,
            )],
            // More than ten million bytes; the limit was none.
            Some(Exchange::new(
                "long-name",
                "10000001",
                "refused; 3 errors: Name too long: NCName",
            )),
        ),
        // Both entities have the same short content; that of the first is cleared since it contains itself.
        "CVE-2022-40304-Fix-dict-corruption-caused-by-entity-" => (
            vec![Exchange::new(
                "entities",
                "<!DOCTYPE a [<!ENTITY x 'abc'><!ENTITY y 'abc'>]><a b='&x;'>&x;&y;</a>",
                "x is `abc`; y is `abc`; no error",
            )],
            Some(Exchange::new(
                "entities",
                "<!DOCTYPE a [<!ENTITY x '&x;'><!ENTITY y '&x;'>]><a b='&x;'/>",
                "x is ``; y is `&x;`; errors",
            )),
        ),
        "CVE-2023-28484-Fix-null-deref-in-xmlSchemaFixupCompl" => (
            vec![Exchange::new("schema", EXTENSION, "valid")],
            Some(Exchange::new(
                "schema",
                ISSUE_491,
                "no schema; 1 errors: complex type 'Child': The content type of both, the type and its base type, must \
                 either 'mixed' or 'element-only'.",
            )),
        ),
        // A document that breaks off within an element with a namespace, and another one that has not declared it.
        "Reset-nsNr-in-xmlCtxtReset" => (
            vec![Exchange::new(
                "reset",
                "<a xmlns:p='urn:p'></a>\x0c<p:c xmlns:p='urn:q'/>",
                "0 namespaces are left; c is in urn:q",
            )],
            Some(Exchange::new(
                "reset",
                "<a xmlns:p='urn:p'><p:b>\x0c<p:c/>",
                "0 namespaces are left; p:c is in none; 1 errors: Namespace prefix p on c is not defined",
            )),
        ),
        "Also-reset-nsNr-in-htmlCtxtReset" => (
            vec![Exchange::new(
                "html-reset",
                "<a></a>\x0c<p/>",
                "0 namespaces are left",
            )],
            Some(Exchange::new(
                "html-reset",
                "<a xmlns:p='urn:p'><p:b>\x0c<p/>",
                "0 namespaces are left",
            )),
        ),
        // Only where memory runs out in the right moment is there anything to see.
        "CVE-2022-49043" => (vec![Exchange::new("xinclude", INCLUDE, INCLUDED)], None),
        "CVE-2024-56171" | "CVE-2025-32415" => {
            (vec![Exchange::new("schema", KEYS, KEYS_ANSWER)], None)
        }
        "CVE-2025-24928" => (
            vec![Exchange::new(
                "valid",
                "<!DOCTYPE a [<!ELEMENT a (b,c)><!ELEMENT b EMPTY><!ELEMENT c EMPTY>]><a><c/><b/></a>",
                "invalid; 1 errors: Element a content does not follow the DTD, expecting (b , c), got (c b)",
            )],
            Some(Exchange::made(
                "valid",
                long_content(),
                "invalid; 1 errors: Element a content does not follow the DTD, expecting (b), got (b  ...",
            )),
        ),
        "CVE-2023-39615_1" => (
            vec![Exchange::new(
                "parse",
                "<a/>",
                "<?xml version=\"1.0\"?>\n<a/>\n",
            )],
            Some(Exchange::new("sax1", "<a><b/><c/></a>", "3 elements")),
        ),
        "CVE-2024-25062" => (
            vec![Exchange::new(
                "reader",
                "<!DOCTYPE a [<!ELEMENT a (b*)><!ELEMENT b EMPTY>]><a><b/><b/></a>",
                "a a b b a 0",
            )],
            // An include that fails is tried again when its end is read; where it does not fail, what was freed is used.
            Some(Exchange::new("reader", INCLUDE_NOTHING, INCLUDE_FAILED)),
        ),
        "CVE-2025-32414-bug-889-v2.10.4-and-below" => (
            vec![Exchange::new(
                "characters",
                "<a>one<b/>two</a>",
                "6 characters, 0",
            )],
            Some(Exchange::made(
                "characters",
                format!("<a>{}</a>", "é".repeat(20_000)),
                "20000 characters, 0",
            )),
        ),
        "CVE-2025-6021" => (
            vec![Exchange::new(
                "valid",
                "<!DOCTYPE a [<!ELEMENT a (p:b)><!ATTLIST a xmlns:p CDATA #IMPLIED><!ELEMENT p:b EMPTY>]>\
                 <a xmlns:p='urn:p'><p:b/></a>",
                "valid",
            )],
            None,
        ),
        // A command and an argument that are longer than what they are copied to.
        "CVE-2025-6170" => (
            vec![Exchange::new(
                "shell",
                "<a><b>text</b></a>\x0ccat /a/b\nxpath count(//b)\nnone\ncd a\npwd",
                " -------\n<b>text</b>\nObject is a number : 1\n/a\n",
            )],
            Some(Exchange::made(
                "shell",
                format!(
                    "<a/>\x0c{} y\ncat {}\ncd a\npwd",
                    "x".repeat(90),
                    "z".repeat(3000)
                ),
                "/a\n",
            )),
        ),
        "CVE-2025-49794_CVE-2025-49796" => (
            vec![Exchange::made(
                "schematron",
                schematron("@t", "<a><b t='1'/></a>"),
                "1; 1 errors: /a/b line 1: t",
            )],
            Some(Exchange::made(
                "schematron",
                schematron("/", "<a><b/></a>"),
                "1; 1 errors: /a/b line 1: node failed report",
            )),
        ),
        "CVE-2025-9714" => (
            vec![Exchange::new("xpath", "eval('count(//entry) + 1')", "2")],
            Some(Exchange::new(
                "xpath",
                "eval(string(/log/entry))",
                "nothing; 1 errors: Recursion limit exceeded",
            )),
        ),
        "CVE-2026-0990" => (
            vec![Exchange::new(
                "catalog",
                CATALOG,
                "file:///a, and 1 more catalogs",
            )],
            Some(Exchange::new(
                "catalog",
                RECURSIVE,
                "nothing, and 0 more catalogs; 1 errors: Detected recursion in catalog (null)",
            )),
        ),
        "CVE-2026-0992/02-096402c94" => (
            vec![Exchange::new(
                "catalog",
                CATALOG,
                "file:///a, and 1 more catalogs",
            )],
            Some(Exchange::new(
                "catalog",
                REPEATED,
                "file:///a, and 1 more catalogs",
            )),
        ),
        "0034-testcatalog-Add-new-tests-for-catalog.c" => (
            vec![Exchange::new(
                "catalog",
                CATALOG,
                "file:///a, and 1 more catalogs",
            )],
            None,
        ),
        _ => return None,
    };
    Some(About { exercise, hole })
}
