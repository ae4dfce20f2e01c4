"""A bench and rows of trials for the tests."""

from pathlib import Path

from finelaunch.chaos.attempt import Bench, Facts

FACTS = Facts(12, 2.0, (1, 2), (6, 12), (), 0.5, 0.1, 0.1, 0.0, 0.5, 3.0, 4096, 8192)
BENCH = Bench(("train", "imdb/smoke", "--on", "cpu"), Path("chaos/reference"), FACTS, 1)
