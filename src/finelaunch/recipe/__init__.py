"""Recipes: what to train, from a file, its base and the command line."""
