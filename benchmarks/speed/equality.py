"""First of all: do the contestants do the same work? 20 steps of the same batches without dropout, losses compared.

The batches are those of ours, which writes them down (``samples.jsonl``). The plain script keeps its padding to the
maximum length, the tuned one pads to the longest row. For question answering both are told to search answers among real
tokens only, as ours always does: the library's own loss has padded positions in its softmax, and would depend on them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from contestants import CONTESTANTS, Call, process
from processes import Seen
from rows import Work

STEPS, BATCH = 20, 2
TOLERANCE = 1e-4


def check(
    work: Work, folder: Path, caches: Path, steps: int, timeout: float, threads: int, device: str
) -> dict[str, Seen]:
    """Return what the contestants have shown in the check; their caches, empty before, lie in ``caches``."""
    seen: dict[str, Seen] = {}
    for name in CONTESTANTS:
        order = None if name == "ours" else seen["ours"].out / "samples.jsonl"
        call = Call(name, "many", max_steps=steps, start_only=True, batch=BATCH, check=True, order=order, device=device)
        seen[name] = process(work, call, folder / f"{work.name}-check-{name}", caches / name, timeout, threads).run()
    return seen


def compare(probes: Mapping[str, Mapping]) -> tuple[float | None, str]:
    """Return the largest relative difference of a loss from ours, and why the check fails, if it does.

    Args:
        probes: What the probe has seen of each contestant.
    """
    ours = probes["ours"]
    worst = 0.0
    for name, probe in probes.items():
        if rows_and_tokens(probe["inputs"]) != rows_and_tokens(ours["inputs"]):
            return None, f"{name} did not train on the same batches"
        for step, (own, other) in enumerate(zip(ours["losses"], probe["losses"], strict=True), 1):
            difference = abs(other - own) / max(abs(own), 1e-12)
            if not difference <= TOLERANCE:
                return difference, f"the loss of {name} at step {step} is {other:.6f}, of ours {own:.6f}"
            worst = max(worst, difference)
    return (worst, "") if ours["losses"] else (None, "no step was made")


def rows_and_tokens(inputs: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return rows and real tokens of every step, of inputs ``[rows, places, real tokens]``."""
    return [(step[0], step[2]) for step in inputs]
