"""The vocabulary of the library: masks, tokens, positions, random keys, and the registry of parts."""
