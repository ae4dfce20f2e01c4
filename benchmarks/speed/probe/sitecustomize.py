"""Measures a training from outside, the same way in every contestant: Python imports this at its start.

The folder of this file is put on PYTHONPATH by :mod:`contestants`. Nothing is imported here that a contestant would
not import itself: when ``transformers.trainer`` is loaded, its Trainer gets a callback and two timers, and when
finelaunch's evaluation and preparation are loaded, those get a timer each. At its end the process writes one file.
"""

import atexit
import contextlib
import importlib.abc
import importlib.util
import json
import os
import sys
import time

TARGET = os.environ.get("BENCH_PROBE")
TURNS = [int(number) for number in os.environ.get("BENCH_TURNS", "").split()]
"""Where it hears that its turn has come, and where it says that it is over; none: there are no turns."""
SEEN: dict = {"steps": [], "saves": [], "laps": {}}
_INPUTS: list = []
_LOSSES: list = []
_WAITED = [0.0]


def clock() -> float:
    """Return the seconds of a clock that stands while others have their turn."""
    return time.monotonic() - _WAITED[0]


def next_turn() -> None:
    """Let the others have their turn, and wait for the next one."""
    if TURNS:
        since = time.monotonic()
        os.write(TURNS[1], b".")
        os.read(TURNS[0], 1)
        _WAITED[0] += time.monotonic() - since


def lap(name: str, since: float, **more) -> None:
    """Book the seconds since ``since`` on the clock; the last lap of a name counts."""
    SEEN["laps"][name] = {"seconds": clock() - since, **more}


def _count(inputs) -> tuple:
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    return ids.shape[0], ids.numel(), ids.numel() if mask is None else mask.sum()


def _peak_bytes() -> int | None:
    """Return the most memory that this process has held; what a parent held is not counted here."""
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")), None)
    return None


def _watch_trainer(module) -> None:
    class Stamps(module.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            next_turn()

        def on_step_end(self, args, state, control, **_):
            if args.device.type == "cuda":
                import torch

                torch.cuda.synchronize()
            SEEN["steps"].append(clock())
            SEEN["peak_bytes_of_steps"] = _peak_bytes()
            if state.global_step < state.max_steps:
                next_turn()

        def on_train_end(self, args, state, control, **_):
            if args.device.type == "cuda":
                import torch

                SEEN["peak_device_bytes"] = torch.cuda.max_memory_allocated()

    trainer = module.Trainer
    made, step, after = trainer.__init__, trainer.training_step, trainer._maybe_log_save_evaluate

    def init(self, *positional, **named):
        made(self, *positional, **named)
        self.add_callback(Stamps())

    def training_step(self, model, inputs, *others, **named):
        _INPUTS.append(_count(inputs))
        loss = step(self, model, inputs, *others, **named)
        if os.environ.get("BENCH_LOSSES"):
            _LOSSES.append(loss)
        return loss

    def save(self, *positional, **named):
        saves, since = self.control.should_save, clock()
        after(self, *positional, **named)
        if saves:
            SEEN["saves"].append(clock() - since)

    trainer.__init__, trainer.training_step, trainer._maybe_log_save_evaluate = init, training_step, save


def _watch_evaluator(module) -> None:
    measure = module.Evaluator.measure

    def timed(self, model, examples, *others, **named):
        since = clock()
        found = measure(self, model, examples, *others, **named)
        lap("evaluate", since, examples=len(examples))
        return found

    module.Evaluator.measure = timed


def _watch_preparation(module) -> None:
    prepare = module.prepare

    def timed(*positional, **named):
        from transformers import AutoTokenizer  # loaded before the clock starts, as the scripts do; it loads torch

        assert AutoTokenizer
        since = clock()
        found = prepare(*positional, **named)
        lap("prepare", since)
        return found

    module.prepare = timed


WATCHED = {
    "transformers.trainer": _watch_trainer,
    "finelaunch.evaluation.evaluate": _watch_evaluator,
    "finelaunch.preparation": _watch_preparation,
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the watched modules as Python does, and watches them once they are loaded."""

    busy = False

    def find_spec(self, name, path, target=None):
        if name not in WATCHED or self.busy:
            return None
        Finder.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            Finder.busy = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def loaded(module):
            load(module)
            WATCHED[name](module)

        spec.loader.exec_module = loaded
        return spec


def write() -> None:
    """Write what was seen."""
    inputs = [[int(number) for number in step] for step in _INPUTS]
    losses = [float(loss) for loss in _LOSSES]
    with open(f"{TARGET}.part", "w") as file:
        json.dump({**SEEN, "peak_bytes": _peak_bytes(), "inputs": inputs, "losses": losses}, file)
    os.replace(f"{TARGET}.part", TARGET)


if TARGET:
    sys.meta_path.insert(0, Finder())
    atexit.register(write)
