// What every scenario program shares: the line protocol with the harness, threads, and a way to say "this is wrong".
//
// The program prints "ready" and then answers each line that it reads from stdin with one line:
//   check   the scenario's verdict, scn_check(): "old", "new", or anything else, which the harness shows
//   hush    "ok"; from now on broken expectations are not reported (the harness is about to stop tasks itself)
//   quit    "ok", and the program ends
//   others  go to scn_command()
#ifndef SCN_H
#define SCN_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "patchable.h"

__attribute__((unused)) static const char *scn_check(void);
__attribute__((unused)) static const char *scn_command(const char *line);

static atomic_int scn_hushed;
// Removes what would outlive the program, also when it ends because something is broken.
static void (*scn_cleanup)(void);

__attribute__((unused, format(printf, 1, 2))) static void scn_broken(const char *format, ...)
{
	if (atomic_load(&scn_hushed))
		return;
	char text[512];
	va_list args;
	va_start(args, format);
	int length = vsnprintf(text, sizeof text - 1, format, args);
	va_end(args);
	if (length > (int)sizeof text - 2)
		length = sizeof text - 2;
	text[length++] = '\n';
	(void)!write(2, "BROKEN: ", 8);
	(void)!write(2, text, length);
	if (scn_cleanup)
		scn_cleanup();
	abort();
}

__attribute__((unused)) static uint64_t scn_now_us(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ull + now.tv_nsec / 1000;
}

__attribute__((unused)) static void scn_nap_us(long microseconds)
{
	struct timespec time = { microseconds / 1000000, microseconds % 1000000 * 1000 };
	while (nanosleep(&time, &time) && errno == EINTR)
		;
}

// Waits until a task of this program sleeps in this system call.
__attribute__((unused)) static void scn_wait_until_in(long number, pid_t tid)
{
	char path[64], text[64];
	snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
	for (;;) {
		FILE *file = fopen(path, "r");
		char *got = file ? fgets(text, sizeof text, file) : NULL;
		if (file)
			fclose(file);
		if (got && *got != 'r' && atol(got) == number)
			return;
		scn_nap_us(100);
	}
}

__attribute__((unused)) static pthread_t scn_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, run, argument);
	if (error) {
		dprintf(2, "pthread_create: %s\n", strerror(error));
		_exit(77);
	}
	return thread;
}

__attribute__((unused)) static int scn_argument(int count, char **values, int index, int otherwise)
{
	return index < count ? atoi(values[index]) : otherwise;
}

static void scn_say(const char *line)
{
	char text[4096];
	int length = snprintf(text, sizeof text, "%s\n", line);
	if (length > (int)sizeof text - 1)
		length = sizeof text - 1;
	for (int at = 0; at < length;) {
		ssize_t written = write(1, text + at, length - at);
		if (written <= 0)
			_exit(1);
		at += written;
	}
}

__attribute__((unused)) static void scn_serve(void)
{
	char line[256];
	int length = 0;
	scn_say("ready");
	for (;;) {
		ssize_t got = read(0, line + length, 1);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			exit(0);
		if (line[length] != '\n') {
			if (length < (int)sizeof line - 2)
				length++;
			continue;
		}
		line[length] = 0;
		length = 0;
		if (!strcmp(line, "check")) {
			scn_say(scn_check());
		} else if (!strcmp(line, "hush")) {
			atomic_store(&scn_hushed, 1);
			scn_say("ok");
		} else if (!strcmp(line, "quit")) {
			// What ends now may look broken to the threads that are still running.
			atomic_store(&scn_hushed, 1);
			scn_say("ok");
			exit(0);
		} else {
			scn_say(scn_command(line));
		}
	}
}
#endif
