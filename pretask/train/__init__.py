"""Training: the loop, its log, checkpoints, the collapse monitor, and what a run's folder holds."""
