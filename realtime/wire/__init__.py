"""The JSON protocol and WebSocket frames, without I/O."""
