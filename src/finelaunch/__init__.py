"""Distributed fine-tuning as recipes: one recipe file, every machine."""

__version__ = "0.1.0"
