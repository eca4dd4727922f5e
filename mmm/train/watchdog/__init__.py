"""Detection of lost processes."""
