"""Basic types: masks, tokens, positions, random keys, and the registry of parts."""
