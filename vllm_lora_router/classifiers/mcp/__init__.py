"""Your own logic: a tool that speaks MCP says which category a request is of, and which adapter it is to get."""
