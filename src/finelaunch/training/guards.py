"""A training that is no longer one ends at the step where it happens: NaN or Inf in a loss, a gradient or a weight.

Without this the Trainer logs such a loss as 0.0 or goes on, DeepSpeed leaves the step out without a word, and weights
that are none are saved. All ranks end at the same step with the same sentence, and leave what computes the batch again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from finelaunch.data.features import Features
from finelaunch.data.sampler import GlobalBatchSampler
from finelaunch.errors import FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.ranks import Ranks, agree, gather
from finelaunch.run.watch import alive
from finelaunch.tasks.base import Example
from finelaunch.tasks.packing import examples_of
from finelaunch.training.placement import Placement
from finelaunch.training.recorder import Forward, keep_weights, random_states, write_record

MAX_SKIPPED_STEPS = 100
"""So many steps of fp16 one after another may be left out; the scale of the loss has long reached its least then."""
SHOWN_IDS = 4
SHOWN_RANKS = 3
_LOWER = "lower training.learning_rate (--allow-change training.learning_rate) or --fresh begins anew"
_LOWER_16 = "lower training.learning_rate, or use launch.precision=bf16 or fp32, with --allow-change, or --fresh"


class Guard(TrainerCallback):
    """Ends the run, on all ranks alike, where a loss, a gradient or a weight is not finite.

    Args:
        run: The run directory.
        sampler: The sampler of this rank, which knows the rows of every step.
        features: The training rows.
        examples: Gives the training examples, for their ids; called at a failure only.
        ranks: This process among all.
        placement: A settled placement.
        newest: Gives the name of the newest whole checkpoint, such as ``checkpoint-6``; called on every rank.
    """

    def __init__(
        self,
        run: RunDirectory,
        sampler: GlobalBatchSampler,
        features: Features,
        examples: Callable[[], Sequence[Example]],
        ranks: Ranks,
        placement: Placement,
        newest: Callable[[], str | None],
    ) -> None:
        self.run = run
        self.sampler = sampler
        self.features = features
        self.examples = examples
        self.ranks = ranks
        self.placement = placement
        self.newest = newest
        self.trainer: Any = None
        self._forwards: list[Forward] = []
        self._bad: int | None = None
        """Which of these had a loss that is not finite, the first of them."""
        self._num_skipped = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget the micro-batches of the step before."""
        self._forwards, self._bad = [], None
        alive()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show life."""
        alive()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show life."""
        alive()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Show life."""
        alive()

    def before_forward(self, num_items: Any) -> None:
        """Remember the random states that a micro-batch begins with.

        Args:
            num_items: Targets of the whole global batch, by which the loss is divided.
        """
        self._forwards.append(Forward(random_states(self.placement.device), num_items))

    def check_loss(self, loss: torch.Tensor) -> None:
        """End the run where the loss of a micro-batch is not finite on some rank.

        One process ends before the backward pass. Several agree once a step, before the backward pass of its last
        micro-batch: under DeepSpeed that one takes the step, and those before it wait for no other rank.

        Args:
            loss: Of this rank's micro-batch, a scalar.

        Raises:
            FinelaunchError: It is; on all ranks, with the ranks and examples that it was.
        """
        self._forwards[-1].loss = loss.detach()
        if self._bad is None and not bool(torch.isfinite(loss.detach()).all()):
            self._bad = len(self._forwards) - 1
        if self.ranks.world_size > 1 and not self.trainer.accelerator.sync_gradients:
            return
        if agree(self._bad is not None)[0]:
            self._fail("loss", [] if self._bad is None else [self._bad])

    def check_gradient(self, norm: Any) -> None:
        """End the run where the gradient is not finite; in fp16 such a step is left out by the scaler of the loss.

        Args:
            norm: Of the whole gradient before it is clipped, as the Trainer has it: a number, a tensor or a cut one.
                DeepSpeed's -1 stands for one that is not finite.

        Raises:
            FinelaunchError: It is; on all ranks, which have reduced the norm together.
        """
        if self.placement.precision == "fp16":
            return
        assert norm is not None, "nothing has computed the norm of the gradient"
        norm = float(_whole(norm))
        if not math.isfinite(norm) or norm < 0:
            self._fail("gradient", range(len(self._forwards)), norm if norm >= 0 else math.nan)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the run where fp16 leaves out one step after another: nothing would be trained any more.

        Raises:
            FinelaunchError: It does.
        """
        alive()
        if self.placement.precision != "fp16":
            return
        self._num_skipped = self._num_skipped + 1 if self.trainer.accelerator.optimizer_step_was_skipped else 0
        if self._num_skipped >= MAX_SKIPPED_STEPS:
            raise FinelaunchError(
                f"training: step {state.global_step}: the gradient overflowed in {MAX_SKIPPED_STEPS} steps one after "
                f"another, which fp16 leaves out; {self._from_where(self.newest())}; {_LOWER_16}"
            )

    def check_weights(self) -> None:
        """End the run where a weight is not finite; to be called by all ranks before weights are written.

        Raises:
            FinelaunchError: One is; on all ranks.
        """
        bad = [name for name, values in _own_weights(self.trainer.model) if not _is_finite(values)]
        if not agree(bool(bad))[0]:
            return
        names = sorted({name for of_rank in gather(bad) for name in of_rank})
        step = self.trainer.state.global_step
        raise FinelaunchError(
            f"training: after step {step}: {len(names)} weights are not finite, {names[0]} among them; they are not "
            f"saved; {self._from_where(self.newest())}; {_LOWER}"
        )

    def _fail(self, kind: str, which: Sequence[int], norm: float | None = None) -> None:
        """Leave what computes micro-batches again and raise one sentence for all ranks; all of them call it.

        Args:
            kind: ``loss`` or ``gradient``.
            which: The micro-batches of this rank that it was, counted from 0; none where it was other ranks.
            norm: Of the gradient.

        Raises:
            FinelaunchError: Always.
        """
        step, checkpoint = self.trainer.state.global_step + 1, self.newest()
        spoilt = kind == "gradient" and self.placement.engine.zero_stage is not None
        spoilt = spoilt and not self.trainer.accelerator.optimizer_step_was_skipped
        weights: dict[str, Any] = {"file": None, "why": "DeepSpeed had taken the step already"}
        if not spoilt:
            weights = keep_weights(self.run, step, self.trainer, self.ranks)
        own: dict[str, Any] = {"rank": self.ranks.rank}
        if which:
            epoch, place = divmod(step - 1, self.sampler.num_global_batches)
            micro_batches = self.sampler.micro_batches(self.sampler.global_batches(epoch)[place])
            batches = []
            for number in which:
                rows = micro_batches[number][self.ranks.rank :: self.ranks.world_size].tolist()
                about = {"micro_step": number + 1, "rows": rows, "example_ids": self._ids(rows)}
                batches.append({**about, **self._forwards[number].facts()})
            about = {"kind": kind, "step": step, "epoch": epoch, "gradient_norm": None if norm is None else str(norm)}
            about |= {
                "num_steps": self.trainer.num_steps,
                "weights": weights,
                "checkpoint": checkpoint,
                "num_micro_steps": len(micro_batches),
            }
            file, why = write_record(self.run, self.ranks, self.placement, {**about, "micro_batches": batches})
            own |= {"micro_steps": [batch["micro_step"] for batch in batches], "file": file, "why": why}
            own |= {"of": len(micro_batches), "ids": [one for batch in batches for one in batch["example_ids"]]}
            own |= {"loss": " ".join(sorted({batch["loss"] for batch in batches}))}
        told = [one for one in gather(own) if "ids" in one]
        raise FinelaunchError(self._sentence(kind, step, norm, told, checkpoint, weights["why"], spoilt))

    def _ids(self, rows: Sequence[int]) -> list[str]:
        """Return the ids of the examples that rows come from; a negative one is that row without its targets."""
        examples = self.examples()
        numbers = [examples_of(self.features, max(row, ~row)) for row in rows]
        return ["+".join(str(examples[number]["id"]) for number in of_row) for of_row in numbers]

    def _from_where(self, checkpoint: str | None) -> str:
        """Return what a run can go on from, as a part of a sentence."""
        if checkpoint is None:
            return "there is no checkpoint to go on from"
        if checkpoint.endswith(f"-{self.trainer.state.global_step}"):
            return f"the newest checkpoint, {checkpoint}, holds the very weights that this happened with"
        return f"the newest good checkpoint is {checkpoint}"

    def _sentence(
        self,
        kind: str,
        step: int,
        norm: float | None,
        told: Sequence[dict[str, Any]],
        checkpoint: str | None,
        why_not: str,
        spoilt: bool,
    ) -> str:
        """Return what all ranks say."""
        several = self.ranks.world_size > 1
        ranks = [str(one["rank"]) for one in told]
        on = f" on rank{'s' * (len(ranks) > 1)} {' and '.join(ranks)} of {self.ranks.world_size}" * several
        where = []
        for one in told[:SHOWN_RANKS]:
            shown = ", ".join(map(repr, one["ids"][:SHOWN_IDS]))
            more = f" and {len(one['ids']) - SHOWN_IDS} more" * (len(one["ids"]) > SHOWN_IDS)
            micro = f"micro-batch {one['micro_steps'][0]} of {one['of']}, " * (kind == "loss" and one["of"] > 1)
            rank = f"rank {one['rank']}: " * several
            where.append(f"{rank}{micro}examples {shown}{more}")
        if kind == "loss":
            what = f"the loss is {' and '.join(sorted({one['loss'] for one in told}))}{on}"
        else:
            what = f"the norm of the gradient is {norm}, with losses that are numbers"
        if len(told) > SHOWN_RANKS:
            where.append("…")
        spoils = "; the weights in memory took the step and are dropped" * spoilt
        files = [one["file"] for one in told if one["file"]]
        again = f"finelaunch train --replay {files[0]} computes it again and names row and module" if files else ""
        again = again or f"what would compute it again could not be written: {told[0]['why']}"
        inexact = f" (not exactly, its weights are not kept: {why_not})" * bool(files and why_not)
        remedy = _LOWER_16 if self.placement.precision == "fp16" else _LOWER
        return (
            f"training: step {step}: {what} ({'; '.join(where)}){spoils}; nothing of this step is saved, "
            f"{self._from_where(checkpoint)}; {remedy}; {again}{inexact}"
        )


def _is_finite(values: torch.Tensor) -> bool:
    """Return whether all are numbers; their sum tells it in one pass, unless it is too large to be one itself."""
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())


def _whole(values: Any) -> Any:
    """Return a tensor that is cut between ranks as one; anything else as it is."""
    from torch.distributed.tensor import DTensor

    return values.full_tensor() if isinstance(values, DTensor) else values


def _own_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that this rank holds, or its part of them."""
    from torch.distributed.tensor import DTensor

    for name, parameter in model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter).detach()
        yield name, values.to_local() if isinstance(values, DTensor) else values
