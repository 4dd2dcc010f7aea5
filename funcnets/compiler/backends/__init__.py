"""Back ends: what runs or compiles a finished graph."""
