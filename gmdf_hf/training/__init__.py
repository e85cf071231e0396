"""Configuration, losses, update steps and checkpoints of a run."""
