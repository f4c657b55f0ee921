"""The endpoints of the server, over HTTP and WebSocket."""
