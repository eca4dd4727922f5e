"""Training: one session, and in it one loop, for every task that trains."""
