"""How a token reaches its expert: expert map, plans, dispatch, transports."""
