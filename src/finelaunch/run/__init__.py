"""The run directory: the only interface between the stages of a run."""
