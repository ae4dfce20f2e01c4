"""What the measured scripts share: their options, the clock of the probe, and a Trainer that is told the batches."""

import argparse
import json
import time
from contextlib import contextmanager
from pathlib import Path

GROUPED_BATCHES = 50
"""The library groups over so many batches where there are 200 or more, and over fewer where there are less."""

try:
    from sitecustomize import clock, lap
except ImportError:  # the script runs without the probe
    clock = time.monotonic

    def lap(name, since, **more):
        print(f"{name}: {clock() - since:.3f} s", flush=True)


@contextmanager
def timed(name, **more):
    since = clock()
    yield
    lap(name, since, **more)


def read_options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--save-steps", type=int, default=0, help="0: after the epoch")
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--tuned", action="store_true", help="pad to the longest row, group rows by length")
    parser.add_argument("--start-only", action="store_true", help="neither evaluate nor save")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--order", type=Path, help="JSON lines with the rows of every step")
    parser.add_argument("--mask-padding", action="store_true", help="as finelaunch does, for equal losses")
    parser.add_argument("--keep-logits", action="store_true")
    return parser.parse_args()


def training_arguments(options):
    """The usual arguments; a tuned script adds length groups. Fused AdamW is the library's default."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(options.out),
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=32,
        learning_rate=options.learning_rate,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        save_strategy="no" if options.start_only else "steps" if options.save_steps else "epoch",
        save_steps=options.save_steps or 500,
        bf16=options.bf16,
        use_cpu=not torch.cuda.is_available(),
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if options.tuned else "random",
        length_column_name="length",
        seed=42,
    )


def trainer_class(options):
    """Return the Trainer, with the batches of a file, or with the length groups of many rows, where that was asked."""
    from torch.utils.data import DataLoader, Sampler
    from transformers import Trainer
    from transformers.trainer_pt_utils import get_length_grouped_indices

    if options.order is None and not options.tuned:
        return Trainer

    class Grouped(Sampler):
        def __init__(self, lengths):
            self.lengths = lengths

        def __len__(self):
            return len(self.lengths)

        def __iter__(self):
            return iter(get_length_grouped_indices(self.lengths, options.batch, mega_batch_mult=GROUPED_BATCHES))

    class InGroups(Trainer):
        def _get_train_sampler(self, *_):
            return Grouped(list(self.train_dataset["length"]))

    if options.order is None:
        return InGroups

    batches = [json.loads(line)["rows"] for line in options.order.read_text().splitlines()]

    class InOrder(Trainer):
        def get_train_dataloader(self):
            drop = [name for name in self.train_dataset.column_names if name == "length"]
            rows = self.train_dataset.remove_columns(drop)
            return DataLoader(rows, batch_sampler=batches, collate_fn=self.data_collator)

    return InOrder


def write_metrics(options, metrics):
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "metrics.json").write_text(json.dumps(metrics))
