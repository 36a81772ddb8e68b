"""HTTP and WebSocket doors: they parse, call the runtime and format."""
