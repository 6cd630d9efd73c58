// Lua's coroutines are suspended by a jump out of the interpreter, on the one stack that there is: what is replaced is left
// before. A coroutine that calls a C function again and again, which yields in between, is old or new in each call.
//# link: -llua5.4
#include "scn.h"
#include <lua5.4/lauxlib.h>
#include <lua5.4/lua.h>
#include <lua5.4/lualib.h>

static lua_State *lua;

__attribute__((noinline)) int put(lua_State *state, int number)
{
	lua_pushinteger(state, number);
	return 1;
}

PATCHABLE int number(lua_State *state)
{
	put(state, 1);
	return 1;
}

static const char *scn_check(void)
{
	// Resumes the coroutine, which yields the sum of two calls.
	lua_getglobal(lua, "turn");
	if (lua_pcall(lua, 0, 1, 0))
		return lua_tostring(lua, -1);
	int sum = lua_tointeger(lua, -1);
	lua_pop(lua, 1);
	return sum == 2 ? "old" : sum == 200 ? "new" : "mixed";
}

#include "no_command.h"

int main(void)
{
	lua = luaL_newstate();
	luaL_openlibs(lua);
	lua_register(lua, "number", number);
	if (luaL_dostring(lua, "turn = coroutine.wrap(function() while true do\n"
			       "  local first = number(); coroutine.yield(first + number()) end end)"))
		return 1;
	scn_serve();
}
