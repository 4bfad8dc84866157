"""The MCP classifier: an MCP tool with custom logic returns the category of a request and optionally an adapter."""
