/*
 * A program around a library. It says on which port of loopback it listens; each connection has a thread of its own and
 * keeps objects of the library for as long as it is open. A request is a line "NAME LENGTH" and so many bytes, an
 * answer a line with its length and so many bytes.
 */
#ifndef HOST_H
#define HOST_H

#include <arpa/inet.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define REQUEST_MAX (1 << 24)

struct answer {
	char text[4096];
	size_t size;
};

/* What a connection keeps. */
static void *opened(void);
static void closed(void *kept);
/* `data` has a zero behind it. */
static void answer(void *kept, const char *name, char *data, size_t size, struct answer *out);

/* Adds to the answer; what has no room in it is left out. */
static void __attribute__((format(printf, 2, 3))) say(struct answer *out, const char *format, ...)
{
	size_t room = sizeof out->text - out->size;
	va_list arguments;
	va_start(arguments, format);
	int size = vsnprintf(out->text + out->size, room, format, arguments);
	va_end(arguments);
	if (size > 0)
		out->size += (size_t)size < room ? (size_t)size : room - 1;
}

static void *connection(void *argument)
{
	FILE *stream = argument;
	void *kept = opened();
	char line[64], name[48];
	size_t size;
	while (fgets(line, sizeof line, stream) && sscanf(line, "%47s %zu", name, &size) == 2 && size < REQUEST_MAX) {
		char *data = malloc(size + 1);
		if (!data || fread(data, 1, size, stream) != size) {
			free(data);
			break;
		}
		data[size] = 0;
		struct answer out = { .size = 0 };
		answer(kept, name, data, size, &out);
		free(data);
		fprintf(stream, "%zu\n%.*s", out.size, (int)out.size, out.text);
		fflush(stream);
	}
	closed(kept);
	fclose(stream);
	return NULL;
}

/* Never returns. `stack` is the size of each connection's. */
static int host(size_t stack)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	int listening = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listening, (struct sockaddr *)&address, length) || listen(listening, 16) ||
	    getsockname(listening, (struct sockaddr *)&address, &length)) {
		perror("host");
		return 1;
	}
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, stack);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int socket = accept(listening, NULL, NULL);
		FILE *stream = socket < 0 ? NULL : fdopen(socket, "r+");
		pthread_t thread;
		if (stream && pthread_create(&thread, &attributes, connection, stream))
			fclose(stream);
	}
}

#endif
