/* A module of redis with a command that answers with its argument, as a simple string. */
#include <redismodule.h>

static int simple(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
	if (argc != 2)
		return RedisModule_WrongArity(ctx);
	return RedisModule_ReplyWithSimpleString(ctx, RedisModule_StringPtrLen(argv[1], NULL));
}

int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc)
{
	(void)argv;
	(void)argc;
	if (RedisModule_Init(ctx, "simple", 1, REDISMODULE_APIVER_1) == REDISMODULE_ERR)
		return REDISMODULE_ERR;
	return RedisModule_CreateCommand(ctx, "simple", simple, "fast", 0, 0, 0);
}
