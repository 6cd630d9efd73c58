/*
 * Requests to libevent. An HTTP server has a thread of its own; each connection keeps one to it open, and a buffer with
 * tagged data.
 */
#include "host.h"
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/tag.h>

static int http_port;

/* The headers and the body of the request, or a header with a value of its choice. */
static void reply(struct evhttp_request *request, void *unused)
{
	(void)unused;
	struct evbuffer *body = evbuffer_new();
	struct evkeyvalq *headers = evhttp_request_get_input_headers(request);
	const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(request);
	if (!strcmp(evhttp_uri_get_path(uri), "/echo")) {
		struct evkeyvalq query;
		evhttp_parse_query_str(evhttp_uri_get_query(uri), &query);
		const char *value = evhttp_find_header(&query, "value");
		int added = evhttp_add_header(evhttp_request_get_output_headers(request), "Echo", value ? value : "");
		evbuffer_add_printf(body, "%s", added ? "refused" : "done");
		evhttp_clear_headers(&query);
	} else {
		struct evbuffer *data = evhttp_request_get_input_buffer(request);
		for (struct evkeyval *header = headers->tqh_first; header; header = header->next.tqe_next)
			evbuffer_add_printf(body, "%s=%s ", header->key, header->value);
		evbuffer_add_printf(body, "and %zu bytes", evbuffer_get_length(data));
	}
	evhttp_send_reply(request, HTTP_OK, "OK", body);
	evbuffer_free(body);
}

static void *serve(void *base)
{
	event_base_dispatch(base);
	return NULL;
}

static int start_server(void)
{
	struct event_base *base = event_base_new();
	struct evhttp *server = evhttp_new(base);
	evhttp_set_gencb(server, reply, NULL);
	struct evhttp_bound_socket *bound = evhttp_bind_socket_with_handle(server, "127.0.0.1", 0);
	struct sockaddr_in address;
	socklen_t length = sizeof address;
	pthread_t thread;
	if (!bound || getsockname(evhttp_bound_socket_get_fd(bound), (struct sockaddr *)&address, &length))
		return -1;
	http_port = ntohs(address.sin_port);
	return pthread_create(&thread, NULL, serve, base);
}

struct kept {
	FILE *http;
	struct evbuffer *tagged;
};

static void *opened(void)
{
	struct kept *kept = calloc(1, sizeof *kept);
	struct sockaddr_in address = { .sin_family = AF_INET,
				       .sin_port = htons(http_port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (!connect(fd, (struct sockaddr *)&address, sizeof address))
		kept->http = fdopen(fd, "r+");
	kept->tagged = evbuffer_new();
	return kept;
}

static void closed(void *data)
{
	struct kept *kept = data;
	if (kept->http)
		fclose(kept->http);
	evbuffer_free(kept->tagged);
	free(kept);
}

/* Sends the request; the answer is what came back, without what is always there. */
static void http(FILE *stream, const char *request, size_t size, struct answer *out)
{
	char line[1024];
	size_t length = 0;
	if (!stream)
		return;
	fwrite(request, 1, size, stream);
	fflush(stream);
	while (fgets(line, sizeof line, stream) && strcmp(line, "\r\n")) {
		if (!strncmp(line, "Content-Length: ", 16))
			length = strtoul(line + 16, NULL, 10);
		else if (strncmp(line, "Date: ", 6) && strncmp(line, "Content-Type: ", 14))
			say(out, "%.*s\\r\\n", (int)strcspn(line, "\r\n"), line);
	}
	if (length < sizeof line && fread(line, 1, length, stream) == length)
		say(out, "%.*s", (int)length, line);
}

/* Writes tags to the buffer that lives on, and reads them again. */
static void tags(struct evbuffer *buffer, const char *text, struct answer *out)
{
	ev_uint32_t number = 0, tag = 0;
	char *string = NULL;
	evtag_marshal_int(buffer, 7, 123456);
	evtag_marshal_string(buffer, 300, text);
	evtag_marshal_int(buffer, 70000, 5);
	int whole = evtag_unmarshal_int(buffer, 7, &number);
	int read = evtag_unmarshal_string(buffer, 300, &string);
	say(out, "%d %u, %d %s, ", whole, number, read, string ? string : "?");
	int size = evtag_unmarshal_header(buffer, &tag);
	evbuffer_drain(buffer, size > 0 ? size : 0);
	say(out, "%u of %d bytes, %zu left", tag, size, evbuffer_get_length(buffer));
	free(string);
}

/* A tag whose data is longer than an int can say; the data is there. */
static void long_tag(struct answer *out)
{
	const size_t size = 1 << 24;
	struct evbuffer *buffer = evbuffer_new();
	char *block = calloc(1, size);
	evbuffer_add(buffer, "\1", 1);
	evtag_encode_int(buffer, 0x80000010);
	for (size_t length = 0; length <= 0x80000010; length += size)
		evbuffer_add_reference(buffer, block, size, NULL, NULL);
	say(out, "a length of %d", evtag_unmarshal_header(buffer, NULL));
	evbuffer_free(buffer);
	free(block);
}

/* A reference to what another buffer holds, in a buffer that is empty, or that has an empty piece. */
static void reference(int piece, const char *text, struct answer *out)
{
	struct evbuffer *from = evbuffer_new(), *to = evbuffer_new();
	if (piece)
		evbuffer_add_reference(to, "", 0, NULL, NULL);
	evbuffer_add(from, text, strlen(text));
	int added = evbuffer_add_buffer_reference(to, from);
	size_t size = evbuffer_get_length(to);
	const unsigned char *data = evbuffer_pullup(to, -1);
	say(out, "%d, %zu bytes: %.*s", added, size, data ? (int)size : 0, data ? (const char *)data : "");
	evbuffer_free(to);
	evbuffer_free(from);
}

static void answer(void *data, const char *name, char *text, size_t size, struct answer *out)
{
	struct kept *kept = data;
	if (!strcmp(name, "http"))
		http(kept->http, text, size, out);
	else if (!strcmp(name, "tags"))
		tags(kept->tagged, text, out);
	else if (!strcmp(name, "long-tag"))
		long_tag(out);
	else if (!strcmp(name, "reference"))
		reference(0, text, out);
	else if (!strcmp(name, "reference-piece"))
		reference(1, text, out);
}

int main(void)
{
	return start_server() ? 1 : host(1 << 20);
}
