"""One training path for every task and method."""
