-- Everything goes to one server.
function mcp_config_pools(_)
	return { main = mcp.pool({ mcp.backend("back", "127.0.0.1", PORT) }) }
end

function mcp_config_routes(pools)
	mcp.attach(mcp.CMD_ANY_STORAGE, function(request)
		return pools.main(request)
	end)
end
