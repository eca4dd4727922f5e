"""Sources: where samples are listed."""
