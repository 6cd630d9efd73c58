/*
 * The demo's patch for Debian's stock redis-server: three commands get other answers. Nothing is known of redis but
 * two functions that it exports; `struct client` stays opaque.
 */
#include <livepatch.h>
#include <stddef.h>

struct client;
extern void addReplyStatus(struct client *c, const char *status);
extern void addReplyBulkCString(struct client *c, const char *text);

static unsigned long answers;

static void lp_pingCommand(struct client *c)
{
	answers++;
	addReplyStatus(c, "PONG from the patch");
}

static void lp_echoCommand(struct client *c)
{
	addReplyBulkCString(c, answers ? "echo from the patch, which has answered pings" : "echo from the patch");
}

static void lp_timeCommand(struct client *c)
{
	addReplyBulkCString(c, "time to patch");
}

static struct klp_func funcs[] = {
	{ .old_name = "pingCommand", .new_func = lp_pingCommand },
	{ .old_name = "echoCommand", .new_func = lp_echoCommand },
	{ .old_name = "timeCommand", .new_func = lp_timeCommand },
	{ }
};
static struct klp_object objs[] = { { .name = NULL, .funcs = funcs }, { } };
static struct klp_patch patch = { .objs = objs };
KLP_PATCH(patch);
