/* Requests to expat. Each connection keeps a parser whose document never ends. */
#include "host.h"
#include <expat.h>

struct counts {
	unsigned elements, characters;
};

static void XMLCALL start(void *data, const XML_Char *name, const XML_Char **attributes)
{
	(void)name, (void)attributes;
	((struct counts *)data)->elements++;
}

static void XMLCALL characters(void *data, const XML_Char *text, int length)
{
	(void)text;
	((struct counts *)data)->characters += length;
}

static XML_Parser parser(struct counts *counts)
{
	XML_Parser parser = XML_ParserCreate(NULL);
	XML_SetUserData(parser, counts);
	XML_SetStartElementHandler(parser, start);
	XML_SetCharacterDataHandler(parser, characters);
	return parser;
}

static void result(XML_Parser parser, enum XML_Status status, const struct counts *counts, struct answer *out)
{
	if (status == XML_STATUS_OK)
		say(out, "%u elements, %u characters", counts->elements, counts->characters);
	else
		say(out, "%s in line %lu", XML_ErrorString(XML_GetErrorCode(parser)), XML_GetCurrentLineNumber(parser));
}

/* Gives it to the parser in pieces, in the parser's own buffer. */
static enum XML_Status by_buffer(XML_Parser parser, const char *data, size_t size, int final)
{
	const size_t most = 16;
	for (;;) {
		size_t piece = size < most ? size : most;
		void *buffer = XML_GetBuffer(parser, (int)most);
		if (!buffer)
			return XML_STATUS_ERROR;
		memcpy(buffer, data, piece);
		enum XML_Status status = XML_ParseBuffer(parser, (int)piece, final && piece == size);
		data += piece;
		size -= piece;
		if (status != XML_STATUS_OK || !size)
			return status;
	}
}

struct kept {
	XML_Parser parser;
	struct counts counts;
};

static void *opened(void)
{
	struct kept *kept = calloc(1, sizeof *kept);
	kept->parser = parser(&kept->counts);
	by_buffer(kept->parser, "<log>", 5, 0);
	return kept;
}

static void closed(void *data)
{
	struct kept *kept = data;
	XML_ParserFree(kept->parser);
	free(kept);
}

static void answer(void *data, const char *name, char *text, size_t size, struct answer *out)
{
	struct kept *kept = data;
	struct counts counts = { 0 };
	if (!strcmp(name, "more")) {
		kept->counts = counts;
		enum XML_Status status = by_buffer(kept->parser, text, size, 0);
		result(kept->parser, status, &kept->counts, out);
		return;
	}
	XML_Parser new = parser(&counts);
	if (!strcmp(name, "parse")) {
		result(new, XML_Parse(new, text, (int)size, 1), &counts, out);
	} else if (!strcmp(name, "buffer")) {
		result(new, by_buffer(new, text, size, 1), &counts, out);
	} else if (!strcmp(name, "negative")) {
		by_buffer(new, "<a>", 3, 0);
		enum XML_Status status = XML_ParseBuffer(new, -1, 0);
		say(out, "-1 bytes: %s; `<a>` and `</a>`: ",
		    status == XML_STATUS_OK ? "taken" : XML_ErrorString(XML_GetErrorCode(new)));
		result(new, by_buffer(new, "</a>", 4, 1), &counts, out);
	}
	XML_ParserFree(new);
}

int main(void)
{
	return host(1 << 20);
}
