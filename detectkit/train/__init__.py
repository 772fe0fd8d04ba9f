"""Training: optimiser and rate, objective weights, the loop and its resumable state."""
