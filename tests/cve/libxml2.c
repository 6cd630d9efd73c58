/*
 * Requests to libxml2. Each connection keeps a document, an XPath context for it and a parser context. The parts of a
 * request are separated by form feeds.
 */
#include "host.h"
#include <libxml/HTMLparser.h>
#include <libxml/catalog.h>
#include <libxml/debugXML.h>
#include <libxml/parser.h>
#include <libxml/parserInternals.h>
#include <libxml/schematron.h>
#include <libxml/xinclude.h>
#include <libxml/xmlreader.h>
#include <libxml/xmlschemas.h>
#include <libxml/xpath.h>
#include <libxml/xpathInternals.h>

static __thread unsigned errors;
static __thread char first_error[256];

static void on_error(void *unused, xmlErrorPtr error)
{
	(void)unused;
	if (!errors++)
		snprintf(first_error, sizeof first_error, "%.*s", (int)strcspn(error->message, "\n"), error->message);
}

static void silent(void *unused, const char *format, ...)
{
	(void)unused, (void)format;
}

static void say_errors(struct answer *out)
{
	if (errors)
		say(out, "; %u errors: %s", errors, first_error);
}

struct kept {
	xmlDocPtr document;
	xmlXPathContextPtr xpath;
	xmlParserCtxtPtr parser;
};

static const char KEPT[] = "<!DOCTYPE log [<!ENTITY e 'something longer'>]>"
			   "<log xmlns:p='urn:p'><p:entry n='1'>&e;</p:entry><entry n='2'>eval(string(/log/entry))</entry></log>";

static xmlDocPtr parse(const char *text, int options)
{
	return xmlReadMemory(text, (int)strlen(text), "memory.xml", NULL, options | XML_PARSE_NONET);
}

/* Evaluates the string that it is given, as EXSLT's dyn:evaluate does. */
static void evaluate(xmlXPathParserContextPtr parser, int arguments)
{
	(void)arguments;
	xmlChar *text = xmlXPathPopString(parser);
	xmlXPathObjectPtr result = xmlXPathEvalExpression(text, parser->context);
	xmlFree(text);
	valuePush(parser, result ? result : xmlXPathNewCString("nothing"));
}

static void keep(struct kept *kept)
{
	kept->document = parse(KEPT, 0);
	kept->xpath = xmlXPathNewContext(kept->document);
	xmlXPathRegisterFunc(kept->xpath, BAD_CAST "eval", evaluate);
	kept->parser = xmlNewParserCtxt();
}

static void give_up(struct kept *kept)
{
	xmlFreeParserCtxt(kept->parser);
	xmlXPathFreeContext(kept->xpath);
	xmlFreeDoc(kept->document);
}

static void *opened(void)
{
	struct kept *kept = calloc(1, sizeof *kept);
	xmlSetGenericErrorFunc(NULL, silent);
	xmlSetStructuredErrorFunc(NULL, on_error);
	keep(kept);
	return kept;
}

static void closed(void *data)
{
	give_up(data);
	free(data);
}

static void dump(xmlDocPtr document, struct answer *out)
{
	xmlChar *text = NULL;
	int size = 0;
	if (document)
		xmlDocDumpMemory(document, &text, &size);
	say(out, "%.*s", size, text ? (const char *)text : "");
	xmlFree(text);
	xmlFreeDoc(document);
}

/* A name of so many bytes, with all limits lifted that can be. */
static void long_name(size_t size, struct answer *out)
{
	char *text = malloc(size + 4);
	memset(text, 'a', size + 1);
	text[0] = '<';
	strcpy(text + size + 1, "/>");
	xmlDocPtr document = parse(text, XML_PARSE_HUGE);
	say(out, "%s", document ? "taken" : "refused");
	xmlFreeDoc(document);
	free(text);
}

/* What the document's entities x and y are, whatever it has of errors. */
static void entities(const char *text, struct answer *out)
{
	xmlDocPtr document = parse(text, XML_PARSE_NOENT | XML_PARSE_RECOVER);
	const char *names[] = { "x", "y" };
	for (int i = 0; i < 2; i++) {
		xmlEntityPtr entity = document ? xmlGetDocEntity(document, BAD_CAST names[i]) : NULL;
		say(out, "%s is `%s`; ", names[i], entity ? (const char *)entity->content : "?");
	}
	say(out, "%s", errors ? "errors" : "no error");
	xmlFreeDoc(document);
}

static void schema(const char *definition, const char *text, struct answer *out)
{
	xmlSchemaParserCtxtPtr parser = xmlSchemaNewMemParserCtxt(definition, (int)strlen(definition));
	xmlSchemaPtr schema = xmlSchemaParse(parser);
	xmlSchemaFreeParserCtxt(parser);
	if (!schema) {
		say(out, "no schema");
	} else {
		xmlDocPtr document = parse(text, 0);
		xmlSchemaValidCtxtPtr context = xmlSchemaNewValidCtxt(schema);
		say(out, "%s", xmlSchemaValidateDoc(context, document) ? "invalid" : "valid");
		xmlSchemaFreeValidCtxt(context);
		xmlSchemaFree(schema);
		xmlFreeDoc(document);
	}
}

static void schematron(const char *definition, const char *text, struct answer *out)
{
	xmlSchematronParserCtxtPtr parser = xmlSchematronNewMemParserCtxt(definition, (int)strlen(definition));
	xmlSchematronPtr schema = xmlSchematronParse(parser);
	xmlDocPtr document = parse(text, 0);
	xmlSchematronValidCtxtPtr context = xmlSchematronNewValidCtxt(schema, XML_SCHEMATRON_OUT_ERROR);
	xmlSchematronSetValidStructuredErrors(context, on_error, NULL);
	say(out, "%d", xmlSchematronValidateDoc(context, document));
	xmlSchematronFreeValidCtxt(context);
	xmlSchematronFree(schema);
	xmlSchematronFreeParserCtxt(parser);
	xmlFreeDoc(document);
}

/* A document that breaks off, then another one, with one context. */
static void reset(xmlParserCtxtPtr parser, const char *broken, const char *text, int html, struct answer *out)
{
	xmlFreeDoc(xmlCtxtReadMemory(parser, broken, (int)strlen(broken), "a.xml", NULL, XML_PARSE_NONET));
	errors = 0;
	if (html) {
		htmlCtxtReset(parser);
		say(out, "%d namespaces are left", parser->nsNr);
		xmlCtxtReset(parser);
		return;
	}
	xmlCtxtReset(parser);
	say(out, "%d namespaces are left; ", parser->nsNr);
	xmlDocPtr document = xmlCtxtReadMemory(parser, text, (int)strlen(text), "b.xml", NULL, XML_PARSE_NONET);
	xmlNodePtr node = document ? xmlDocGetRootElement(document) : NULL;
	say(out, "%s is in %s", node ? (const char *)node->name : "?", node && node->ns ? (const char *)node->ns->href : "none");
	xmlFreeDoc(document);
}

static void count_element(void *data, const xmlChar *name, const xmlChar **attributes)
{
	(void)data, (void)name, (void)attributes;
	errors++;
}

/* Handlers of our own in the manner of SAX 1. */
static void sax1(const char *text, struct answer *out)
{
	xmlParserCtxtPtr parser = xmlCreateMemoryParserCtxt(text, (int)strlen(text));
	parser->sax->startElement = count_element;
	parser->sax->endElement = NULL;
	parser->sax->characters = parser->sax->ignorableWhitespace = NULL;
	xmlCtxtUseOptions(parser, XML_PARSE_SAX1);
	xmlParseDocument(parser);
	say(out, "%u elements", errors);
	errors = 0;
	xmlFreeDoc(parser->myDoc);
	xmlFreeParserCtxt(parser);
}

static void reader(const char *text, struct answer *out)
{
	int options = XML_PARSE_NONET | XML_PARSE_XINCLUDE | XML_PARSE_DTDVALID;
	xmlTextReaderPtr reader = xmlReaderForMemory(text, (int)strlen(text), "memory.xml", NULL, options);
	xmlTextReaderSetStructuredErrorHandler(reader, on_error, NULL);
	int more;
	while ((more = xmlTextReaderRead(reader)) == 1)
		say(out, "%s ", xmlTextReaderConstName(reader));
	say(out, "%d", more);
	xmlFreeTextReader(reader);
}

static void xpath(struct kept *kept, const char *expression, struct answer *out)
{
	xmlXPathObjectPtr result = xmlXPathEvalExpression(BAD_CAST expression, kept->xpath);
	xmlChar *text = result ? xmlXPathCastToString(result) : NULL;
	say(out, "%s", text ? (const char *)text : "nothing");
	xmlFree(text);
	xmlXPathFreeObject(result);
}

static void write_file(const char *name, const char *text)
{
	char own[64];
	snprintf(own, sizeof own, "%.40s.%lx", name, (unsigned long)pthread_self());
	FILE *file = fopen(own, "w");
	fputs(text, file);
	fclose(file);
	rename(own, name);
}

/* What an URI is by a catalog, and how many other catalogs that one names. */
static void catalog(const char *name, const char *text, const char *uri, struct answer *out)
{
	char *dumped = NULL;
	size_t size = 0, next = 0;
	write_file(name, text);
	xmlCatalogPtr catalog = xmlLoadACatalog(name);
	xmlChar *found = xmlACatalogResolveURI(catalog, BAD_CAST uri);
	FILE *stream = open_memstream(&dumped, &size);
	xmlACatalogDump(catalog, stream);
	fclose(stream);
	for (const char *at = dumped; (at = strstr(at, "<nextCatalog")); at++)
		next++;
	say(out, "%s, and %zu more catalogs", found ? (const char *)found : "nothing", next);
	free(dumped);
	xmlFree(found);
	xmlFreeCatalog(catalog);
}

static __thread char *script;

static char *next_line(char *prompt)
{
	(void)prompt;
	char *line = script ? strsep(&script, "\n") : NULL;
	return line && *line ? strdup(line) : NULL;
}

/* The shell of xmllint. */
static void shell(const char *text, char *lines, struct answer *out)
{
	char *said = NULL;
	size_t size = 0;
	FILE *stream = open_memstream(&said, &size);
	script = lines;
	xmlShell(parse(text, 0), (char *)"memory.xml", next_line, stream);
	fclose(stream);
	say(out, "%s", said);
	free(said);
}

static void answer(void *data, const char *name, char *text, size_t size, struct answer *out)
{
	struct kept *kept = data;
	char *first = strsep(&text, "\f"), *second = text ? strsep(&text, "\f") : NULL;
	(void)size;
	errors = 0;
	if (!strcmp(name, "parse"))
		dump(parse(first, XML_PARSE_NOENT), out);
	else if (!strcmp(name, "long-name"))
		long_name(strtoul(first, NULL, 10), out);
	else if (!strcmp(name, "entities"))
		entities(first, out);
	else if (!strcmp(name, "xpath"))
		xpath(kept, first, out);
	else if (!strcmp(name, "sax1"))
		sax1(first, out);
	else if (!strcmp(name, "reader"))
		reader(first, out);
	else if (!strcmp(name, "valid"))
		xmlFreeDoc(parse(first, XML_PARSE_DTDVALID)), say(out, "%s", errors ? "invalid" : "valid");
	else if (!strcmp(name, "renew"))
		give_up(kept), keep(kept);
	else if (!second)
		return;
	else if (!strcmp(name, "schema"))
		schema(first, second, out);
	else if (!strcmp(name, "schematron"))
		schematron(first, second, out);
	else if (!strcmp(name, "reset"))
		reset(kept->parser, first, second, 0, out);
	else if (!strcmp(name, "html-reset"))
		reset(kept->parser, first, second, 1, out);
	else if (!strcmp(name, "shell"))
		shell(first, second, out);
	else if (!strcmp(name, "catalog") && text)
		catalog(first, second, text, out);
	else if (!strcmp(name, "xinclude")) {
		write_file("included.xml", first);
		xmlDocPtr document = parse(second, 0);
		int replaced = xmlXIncludeProcess(document);
		say(out, "%d: ", replaced);
		dump(document, out);
	}
	if (strcmp(name, "entities"))
		say_errors(out);
}

int main(void)
{
	xmlInitParser();
	/* What recurses without end takes a while to notice. */
	return host(64 << 20);
}
