"""From what processes have shown to figures, ratios with their spread, and verdicts about the floors."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contestants import AGAIN
from processes import Seen
from rows import SHAPES

AGREES = 0.03
"""Ours and ours again may differ by this share; beyond it the machine is too busy to compare speeds."""
NEAR_ZERO_SECONDS, NEAR_ZERO = 0.3, 0.1
"""Warm preprocessing is near zero below these seconds, or this share of the cold one of the plain script."""

Pick = Callable[[Seen], float | None]


@dataclass
class Results:
    """What the processes of a task have shown.

    Args:
        task: Its name.
        trained: Full trainings by contestant, one a repetition.
        cold: Starts with empty caches by contestant.
        warm: Starts with the caches of the start before.
        void: Why nothing of it counts, where the contestants do not do the same work.
        difference: The largest relative difference of a loss in that check.
        postprocess: Seconds of the loop and of finelaunch's search on the same logits, a pair a round.
        example: What became of the transformers example script.
    """

    task: str
    trained: dict[str, list[Seen]] = field(default_factory=dict)
    cold: dict[str, list[Seen]] = field(default_factory=dict)
    warm: dict[str, list[Seen]] = field(default_factory=dict)
    void: str = ""
    difference: float | None = None
    postprocess: list[tuple[float, float]] = field(default_factory=list)
    example: str = ""


@dataclass(frozen=True)
class Ratio:
    """How many times better ours is, over pairs of one repetition."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def rates(probe: dict) -> tuple[float, float]:
    """Return samples and real tokens a second of the second epoch.

    The first one warms up. In the second everyone goes through every row once, in whatever order: library and
    finelaunch have the longest rows at other places, and what is long takes more time a token.
    """
    ends, inputs = probe["steps"], probe["inputs"]
    half = len(ends) // 2
    if half < 1:
        return 0.0, 0.0
    seconds = ends[-1] - ends[half - 1]
    return sum(step[0] for step in inputs[half:]) / seconds, sum(step[2] for step in inputs[half:]) / seconds


def per_example(seen: Seen) -> float | None:
    """Return the seconds of evaluation with post-processing per example."""
    lap = seen.probe["laps"].get("evaluate")
    return lap["seconds"] / lap["examples"] if lap else seen.metrics.get("seconds_per_example")


def memory_of_steps(seen: Seen) -> float | None:
    """Return the most megabytes that were held until the last step; evaluation and checkpoint come after it."""
    held = seen.probe.get("peak_bytes_of_steps")
    return held / 1e6 if held else None


def checkpoint_bytes(out: Path) -> float | None:
    """Return the size of the newest checkpoint below ``out``."""
    folders = sorted(out.rglob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime)
    return float(sum(file.stat().st_size for file in folders[-1].rglob("*") if file.is_file())) if folders else None


@dataclass(frozen=True)
class Measure:
    """One line of a table.

    Args:
        title: What is measured.
        runs: ``trained``, ``cold`` or ``warm``.
        pick: Takes the figure out of what a process has shown.
        form: How it is written.
        more_is_better: Otherwise less is; None: it is no speed and has no ratio.
    """

    title: str
    runs: str
    pick: Pick
    form: str
    more_is_better: bool | None = False


MEASURES = {
    "samples": Measure("training, samples/s", "trained", lambda seen: rates(seen.probe)[0], "{:,.2f}", True),
    "tokens": Measure("training, real tokens/s", "trained", lambda seen: rates(seen.probe)[1], "{:,.0f}", True),
    "evaluate": Measure("evaluation with post-processing, s an example", "trained", per_example, "{:.4f}"),
    "cold": Measure("preprocessing, cold, s", "cold", lambda seen: seen.lap("prepare"), "{:.2f}"),
    "warm": Measure("preprocessing, warm, s", "warm", lambda seen: seen.lap("prepare"), "{:.2f}"),
    "start cold": Measure("command to first step, cold, s", "cold", lambda seen: seen.to_first_step, "{:.1f}"),
    "start warm": Measure("command to first step, warm, s", "warm", lambda seen: seen.to_first_step, "{:.1f}"),
    "memory of steps": Measure("peak memory to the last step, MB", "trained", memory_of_steps, "{:,.0f}"),
    "memory": Measure("peak memory with evaluation, MB", "trained", lambda seen: seen.peak_bytes / 1e6, "{:,.0f}"),
    "bytes": Measure("checkpoint, MB", "trained", lambda seen: seen.metrics["checkpoint_bytes"] / 1e6, "{:,.1f}"),
    "save": Measure("checkpoint, s", "trained", lambda seen: (seen.probe["saves"] or [None])[-1], "{:.2f}"),
}


def values(results: Results, measure: Measure, contestant: str) -> list[float]:
    """Return the figures of a contestant, one a repetition."""
    found = [measure.pick(seen) for seen in getattr(results, measure.runs).get(contestant, [])]
    return [value for value in found if value is not None]


def ratio(results: Results, measure: Measure, other: str, ours: str = "ours") -> Ratio | None:
    """Return how many times better ours is than ``other``: the median of the repetitions, and their range."""
    mine, theirs = values(results, measure, ours), values(results, measure, other)
    pairs = list(zip(mine, theirs, strict=False))
    if not pairs or not all(a > 0 and b > 0 for a, b in pairs):
        return None
    return _spread([a / b if measure.more_is_better else b / a for a, b in pairs])


def table(results: Results) -> list[str]:
    """Return the table of a task."""
    others = [name for name in results.trained if name not in ("ours", AGAIN)]
    head = ["measured", "ours", *others, *(f"ours over {name}" for name in others), "ours over ours again"]
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    for measure in MEASURES.values():
        cells = [_middle(values(results, measure, name), measure.form) for name in ("ours", *others)]
        cells += [str(ratio(results, measure, name) or "-") for name in (*others, AGAIN)]
        lines.append(f"| {measure.title} | {' | '.join(cells)} |")
    if results.postprocess:
        loop, search = zip(*results.postprocess, strict=True)
        times = str(_spread([a / b for a, b in results.postprocess]))
        cells = {"ours": search, "plain": loop}
        shown = [_middle(cells.get(name, ()), "{:.4f}") for name in ("ours", *others)]
        blank = ["-"] * (len(others) - 1)
        lines.append(f"| post-processing alone, s, same logits | {' | '.join([*shown, times, *blank, '-'])} |")
    for name in SHAPES[results.task].quality:
        quality = Measure(name, "trained", lambda seen, name=name: seen.metrics.get(name), "{:.3f}", None)
        shown = [_middle(values(results, quality, one), quality.form) for one in ("ours", *others)]
        lines.append(f"| {name} after it | {' | '.join([*shown, *['-'] * (len(others) + 1)])} |")
    return lines


def _middle(numbers: Sequence[float], form: str) -> str:
    return form.format(statistics.median(numbers)) if numbers else "-"


def verdict(found: Ratio | None, floor: float, same: Ratio | None, within: float = AGREES) -> str:
    """Return whether a floor is reached, missed, or cannot be told from noise.

    Args:
        found: How many times better ours is.
        floor: What was promised.
        same: Ours against itself; None where only one of the two was run so.
        within: So far below the floor it is noise.
    """
    if found is None:
        return "not measured"
    if same is not None and abs(same.middle - 1.0) > AGREES:
        return f"noise: ours against ours is {same.middle:.3f}"
    if found.middle >= floor:
        return "reached"
    return "noise" if found.middle >= floor * (1.0 - within) else "missed"


def floors(results: Results) -> list[str]:
    """Return the table of floors of a task that is not void."""
    lines = ["| floor | seen | verdict |", "| --- | ---: | --- |"]
    return lines + [f"| {what} | {seen or '-'} | {said} |" for what, seen, said in _floors_of(results)]


def _floors_of(results: Results) -> Iterator[tuple[str, object, str]]:
    """Yield what was promised of a task, what was seen, and the verdict."""
    samples = MEASURES["samples"]
    same = ratio(results, samples, AGAIN)
    yield f"ours against ours within {AGREES:.0%}", same, verdict(same, 1.0, same)
    if results.task == "squad":
        found = ratio(results, samples, "plain")
        yield "training at least 1.5 x plain", found, verdict(found, 1.5, same)
        found = _spread([loop / search for loop, search in results.postprocess])
        yield "post-processing alone at least 10 x the loop", found, verdict(found, 10.0, None, 0.0)
    found = ratio(results, samples, "tuned")
    yield "training at least 1.0 x tuned", found, verdict(found, 1.0, same)
    warm, cold = values(results, MEASURES["warm"], "ours"), values(results, MEASURES["cold"], "plain")
    if warm and cold:
        took, whole = statistics.median(warm), statistics.median(cold)
        said = "reached" if took <= max(NEAR_ZERO * whole, NEAR_ZERO_SECONDS) else "missed"
        what = f"warm preprocessing near zero: {NEAR_ZERO_SECONDS} s, or {NEAR_ZERO:.0%} of plain's cold"
        yield what, f"{took:.2f} s of {whole:.2f} s", said
    for kind in ("start cold", "start warm"):
        found = ratio(results, MEASURES[kind], "plain")
        yield f"{MEASURES[kind].title.removesuffix(', s')}: not slower than plain", found, verdict(found, 1.0, None)


def _spread(ratios: Sequence[float]) -> Ratio | None:
    return Ratio(statistics.median(ratios), min(ratios), max(ratios)) if ratios else None
