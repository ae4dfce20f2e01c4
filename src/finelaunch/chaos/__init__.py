"""Faults on purpose: a recipe is killed, stopped, damaged and starved, and must end in the weights of the whole run."""
