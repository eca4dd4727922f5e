"""The report of runs: one HTML page that needs no other file."""
