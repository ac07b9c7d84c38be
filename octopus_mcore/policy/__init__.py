"""What the trainer does with a model: log-probs, losses, updates, checkpoints."""
