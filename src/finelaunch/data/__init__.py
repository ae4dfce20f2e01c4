"""Rows from files and the hub, checked, split, encoded once and served in one order on every machine."""
