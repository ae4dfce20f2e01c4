"""What every figure of a run is computed with: pure functions on numpy arrays and strings, without torch or network."""
