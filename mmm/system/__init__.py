"""Files, memory of the C library, and hiding of secrets."""
