"""What came out: exact measurement of a model on a split, and predictions for new inputs."""
