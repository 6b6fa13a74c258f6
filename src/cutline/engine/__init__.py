"""Training: one loop for every task, and what it stands on."""
