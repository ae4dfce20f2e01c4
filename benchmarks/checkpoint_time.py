"""For how long a checkpoint keeps training waiting, beside the stock Trainer's: checkpoint_time.py [PAGE.md]

MiniLM (22.7M parameters) with the states of AdamW, fp32, CPU; one process, and 2 ranks of DDP. Both sides save the same
live model, optimizer and scheduler in the same process, in turns, each keeping its two newest checkpoints, on a disk
that was flushed before and with nothing running beside. Stock: ``Trainer._save_checkpoint`` of transformers, complete.
finelaunch: all that a checkpoint brings between two steps: the check of the weights, the save, its callbacks, and the
publication at a later step, timed from outside; its own ``blocked_seconds`` and ``total_seconds`` stand beside. Last
comes the median step while files are hashed in the background, and otherwise.
"""

import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import page

SAVES, STEPS_BETWEEN = 8, 8
"""Saves of each side; steps from a save of one side to the next of the other."""
ENGINES = {"one process": ("cpu", 1), "DDP, 2 processes": ("cpu_ddp", 2)}
"""Profile and processes, a thread each."""
WORDS = [
    "training.global_batch_size=4",
    f"training.max_steps={2 * SAVES * STEPS_BETWEEN + STEPS_BETWEEN - 1}",
    "training.num_train_epochs=1000",
    "task.max_length=32",
    "training.logging_steps=100000",
    "training.eval_strategy=no",
    "training.save_strategy=steps",
    f"training.save_steps={2 * STEPS_BETWEEN}",
    "training.save_total_limit=2",
    "evaluation.base=false",
    "data.test.max_samples=2",
    "data.validation_fraction=0.02",
]
HEAD = "engine", "saves", "bytes", "stock", "finelaunch", "ratio", "`blocked_seconds`", "`total_seconds`", "steps"


def worker(folder: Path, profile: str) -> None:
    """Train in this rank, saving in turns, and leave the seconds of the first one in a file."""
    from transformers import Trainer, TrainerCallback

    from finelaunch.launch.request import Request, choose
    from finelaunch.pipeline import Job, train_recipe
    from finelaunch.recipe.load import load_recipe, read_overrides
    from finelaunch.run.directory import RunDirectory
    from finelaunch.run.files import read_lines
    from finelaunch.run.ranks import Ranks, gather
    from finelaunch.training.placement import stop_engine
    from finelaunch.training.saving import Saving
    from finelaunch.training.trainer import FinelaunchTrainer

    ranks = Ranks.from_environment()
    stock: list[float] = []
    waited: list[float] = []
    published: list[float] = []
    steps: dict[bool, list[float]] = {True: [], False: []}
    """Seconds of the steps during which files were hashed, and of the others."""

    def quiet(saving: Saving) -> None:
        """Wait until nothing of a save goes on, on any rank."""
        while any(gather(saving.is_busy())):
            time.sleep(0.01)
        if ranks.is_first:
            os.sync()
        gather(None)

    class InTurns(TrainerCallback):
        """Called last at the end of a step: saves by the stock Trainer, or readies the disk for ours."""

        def __init__(self, trainer: FinelaunchTrainer) -> None:
            self.trainer = trainer
            self.stock: Trainer | None = None
            self.begun, self.busy = 0.0, False

        def on_step_begin(self, args, state, control, **_) -> None:
            self.begun, self.busy = time.perf_counter(), self.trainer.saving.is_busy()

        def on_step_end(self, args, state, control, **_) -> None:
            steps[self.busy].append(time.perf_counter() - self.begun)
            if state.global_step % STEPS_BETWEEN:
                return
            quiet(self.trainer.saving)
            if control.should_save:
                return
            since = time.perf_counter()
            self.stock_trainer()._save_checkpoint(self.trainer.model, None)
            gather(None)  # as ours: no rank computes while the first one writes
            stock.append(time.perf_counter() - since)

        def stock_trainer(self) -> Trainer:
            if self.stock is None:
                arguments = copy.copy(self.trainer.args)
                arguments.output_dir, arguments.save_total_limit = str(folder / "stock"), 2
                tokenizer = self.trainer.processing_class
                self.stock = Trainer(model=self.trainer.model, args=arguments, processing_class=tokenizer)
            self.stock.optimizer, self.stock.lr_scheduler = self.trainer.optimizer, self.trainer.lr_scheduler
            self.stock.state = copy.deepcopy(self.trainer.state)
            return self.stock

    def with_turns(self, **given) -> None:
        made(self, **given)
        self.add_callback(InTurns(self))

    def timed(original, taken, counts):
        def call(self, *others, **named):
            does = counts(self)
            since = time.perf_counter()
            found = original(self, *others, **named)
            if does:
                taken.append(time.perf_counter() - since)
            return found

        return call

    made, finish = FinelaunchTrainer.__init__, Saving.finish
    after_step = FinelaunchTrainer._maybe_log_save_evaluate
    words = read_overrides(WORDS)
    recipe, document = load_recipe("imdb/minilm", words["recipe"])
    machine = choose(profile, words["launch"], ranks, Request(), "cpu")
    run = RunDirectory(folder / "run", ranks.rank)
    with (
        mock.patch.object(FinelaunchTrainer, "__init__", with_turns),
        mock.patch.object(
            FinelaunchTrainer,
            "_maybe_log_save_evaluate",
            timed(after_step, waited, lambda trainer: trainer.control.should_save),
        ),
        mock.patch.object(Saving, "finish", timed(finish, published, lambda saving: saving._draft is not None)),
    ):
        train_recipe(Job(recipe, document, machine.profile, machine.document, machine.name, ranks), run)
    if ranks.is_first:
        saved = [event for event in read_lines(run.events) if event["event"] == "saved"]
        own = {name: [event[name] for event in saved] for name in ("bytes", "blocked_seconds", "total_seconds")}
        figures = {"stock": stock, "waited": waited, "published": published, **own}
        figures |= {"while hashing": steps[True], "otherwise": steps[False]}
        (folder / "seconds.json").write_text(json.dumps(figures))
    stop_engine()


def measure(folder: Path, profile: str, processes: int) -> dict[str, list[float]]:
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] * (processes > 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, *torchrun, __file__, "worker", str(folder), profile]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "seconds.json").read_text())


def main(target: Path | None = None) -> None:
    lines = [f"| {' | '.join(HEAD)} |", "| --- |" + " --- |" * (len(HEAD) - 1)]
    with tempfile.TemporaryDirectory() as name:
        for engine, how in ENGINES.items():
            figures = measure(Path(name) / engine.partition(",")[0], *how)
            print(json.dumps({engine: figures}), file=sys.stderr)
            saves = (figures[key][:SAVES] for key in ("waited", "published", "blocked_seconds", "total_seconds"))
            waited, published, blocked, total = saves  # a further one is of the end of training
            whole = list(map(sum, zip(waited, published, strict=True)))
            kinds = figures["stock"], whole, blocked, total, figures["while hashing"], figures["otherwise"]
            stock, ours, blocked, total, hashing, otherwise = map(statistics.median, kinds)
            cells = f"{len(figures['stock'])} + {len(whole)}", f"{figures['bytes'][0]:,}", f"{stock:.3f}", f"{ours:.3f}"
            cells += f"{ours / stock:.2f}", f"{blocked:.3f}", f"{total:.3f}", f"{hashing:.3f} / {otherwise:.3f}"
            lines.append(f"| {engine} | {' | '.join(cells)} |")
    about = "MiniLM with AdamW on the CPU, a thread a process, medians in seconds of saves in turns"
    page.put(target, "checkpoint-time", lines, "make bench-save", about)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(Path(sys.argv[2]), sys.argv[3])
    else:
        main(*map(Path, sys.argv[1:]))
