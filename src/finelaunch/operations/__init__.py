"""Watching and ending runs that go on, here or on a cluster, from the run directory alone."""
