"""Verbs: what one does with the parts of `mmm`. Each file is one `Config` and one `run(config) -> dict`."""
