"""WebDataset tars: indexed once and read in place."""
