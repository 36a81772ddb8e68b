"""What a realtime session does, for every protocol. Pure."""
