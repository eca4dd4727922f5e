"""Training: one loop through which every task goes."""
