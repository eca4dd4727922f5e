"""Tasks: procedures on the parts of `mmm`. Each file holds a `Config` and a function `run(config) -> dict`."""
