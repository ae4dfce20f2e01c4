"""The run that nothing stops, made twice: what all trials must end in, and when things happen in it.

Once by a new interpreter, and once as the trials are started. If already these two end differently, no trial could say
anything.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from finelaunch.chaos.attempt import Facts, last_line
from finelaunch.chaos.evidence import compare, weights_digest
from finelaunch.chaos.starts import Starts
from finelaunch.chaos.watch import Trace
from finelaunch.errors import EXIT_DONE, FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines

LOOK_SECONDS = 0.002


def make_reference(folder: Path, words: Sequence[str], starts: Starts) -> Facts:
    """Make the reference in ``folder/reference`` and return what is known of it.

    Args:
        folder: Of the whole.
        words: The command behind ``finelaunch``, without its run directory.
        starts: Starts the command.

    Raises:
        FinelaunchError: It did not come to its end, or the second one ended differently.
    """
    first, whole_seconds = _observe(folder / "reference", words, starts, fresh=True)
    second, again_seconds = _observe(folder / "repeat", words, starts, fresh=False)
    reference, repeat = first.watch.run, second.watch.run
    if found := [f"{name}: {text}" for name, text in compare(repeat, reference).items() if text]:
        raise FinelaunchError(
            f"chaos: two runs that nothing stopped end differently ({'; '.join(found)}), so a trial would prove "
            "nothing; on a GPU set training.deterministic=true"
        )
    shutil.rmtree(folder / "repeat")
    log, events = read_lines(reference.train_log), read_lines(reference.events)
    steps = {row["step"] for row in [*log, *read_lines(reference.samples)]}
    of = {
        name: tuple(sorted({event["step"] for event in events if event["event"] == name}))
        for name in ("saved", "evaluated")
    }
    return Facts(
        num_steps=max(steps),
        num_epochs=float(log[-1]["epoch"]),
        seen_steps=tuple(sorted(steps)),
        saves=of["saved"],
        evaluations=of["evaluated"],
        start_seconds=max(second.trained - second.started, 0.0),
        step_seconds=second.step_seconds(),
        save_seconds=second.save_seconds(),
        evaluate_seconds=second.evaluate_seconds(),
        end_seconds=second.seconds_after(max(steps)),
        whole_seconds=max(whole_seconds, again_seconds),
        begin_bytes=max(first.begin_bytes, second.begin_bytes),
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
    )


def _observe(path: Path, words: Sequence[str], starts: Starts, fresh: bool) -> tuple[Trace, float]:
    """Make a run that nothing stops at ``path``, and return what was seen of it and its seconds.

    Raises:
        FinelaunchError: It failed, or trained next to nothing.
    """
    shutil.rmtree(path, ignore_errors=True)
    output = path.with_suffix(".txt")
    output.unlink(missing_ok=True)
    began, trace = time.monotonic(), Trace(RunDirectory(path))
    process = starts.start([*words, "--run-dir", str(path)], output, fresh=fresh)
    while process.wait(LOOK_SECONDS) is None:
        trace.look(time.monotonic())
    trace.look(time.monotonic())
    if process.code != EXIT_DONE:
        said = last_line(output.read_text(encoding="utf-8", errors="replace"))
        raise FinelaunchError(f"chaos: the run that nothing stops answered {process.code}: {said}; see {output}")
    if weights_digest(trace.watch.run.model) is None or trace.watch.step() < 2:
        raise FinelaunchError(f"chaos: {path} has no weights, or fewer than 2 steps that could be stopped between")
    return trace, time.monotonic() - began
