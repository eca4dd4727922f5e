"""Tasks: procedures on the parts of `mmm`. Each file contains a `Config` and a function `run(config) -> dict`."""
