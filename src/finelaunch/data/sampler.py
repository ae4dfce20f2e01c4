"""The order of training rows: one order for every world size, accumulation and step that a run is resumed at.

An epoch's order depends on (seed, epoch) and the lengths of the rows alone. Rows are permuted, cut into windows of
whole global batches, sorted by length within a window, cut into global batches, and the batches of the window are
shuffled: so batches are random and still hardly padded. Micro-step ``m`` of a global batch is its rows ``m*B*W`` to
``(m+1)*B*W``, of which rank ``r`` takes every W-th: all ranks have rows of like length at the same moment. The last
global batch of an epoch is filled up with rows that carry no target.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from finelaunch.data.features import Features
from finelaunch.data.order import shuffled


class GlobalBatchSampler:
    """A batch sampler over the micro-batches of one rank.

    It yields lists of row numbers; ``~index`` (a negative number) stands for row ``index`` with all labels ignored.

    Args:
        lengths: Tokens of each row, int ``[rows]``.
        global_batch_size: Rows of an optimizer step, over all ranks.
        per_device_batch_size: Rows of a micro-batch of one rank.
        seed: Seed of all orders.
        window_batches: Global batches in whose window rows are sorted by length; 1: none are.
        rank: This rank.
        world_size: Number of ranks.

    Raises:
        ValueError: The global batch is not a multiple of the per-device batch times the ranks, or there are no rows.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        global_batch_size: int,
        per_device_batch_size: int,
        seed: int,
        window_batches: int = 50,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if global_batch_size % (per_device_batch_size * world_size) or len(lengths) == 0:
            cut = f"{world_size} ranks x {per_device_batch_size} rows"
            raise ValueError(f"{len(lengths)} rows in global batches of {global_batch_size} cannot be cut into {cut}")
        self.lengths = np.asarray(lengths)
        self.global_batch_size = global_batch_size
        self.per_device_batch_size = per_device_batch_size
        self.seed = seed
        self.window_batches = window_batches
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.num_steps: int | None = None

    @property
    def num_global_batches(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-len(self.lengths) // self.global_batch_size)

    @property
    def num_padding_rows(self) -> int:
        """Rows without target at the end of every epoch."""
        return self.num_global_batches * self.global_batch_size - len(self.lengths)

    def __len__(self) -> int:
        """Return the micro-batches of this rank in an epoch."""
        return self.num_global_batches * self._num_micro_steps

    @property
    def _num_micro_steps(self) -> int:
        return self.global_batch_size // (self.per_device_batch_size * self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration goes through."""
        self.epoch = epoch

    def end_after(self, num_steps: int) -> None:
        """Yield nothing after ``num_steps`` global batches of all epochs, so that a run that has done them does none.

        The length stays that of an epoch.
        """
        self.num_steps = num_steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the micro-batches of this rank."""
        left = None if self.num_steps is None else max(0, self.num_steps - self.epoch * self.num_global_batches)
        for batch in self.global_batches(self.epoch)[:left]:
            for micro in self.micro_batches(batch):
                yield micro[self.rank :: self.world_size].tolist()

    def micro_batches(self, batch: np.ndarray) -> list[np.ndarray]:
        """Return the rows of each micro-step of a global batch, over all ranks."""
        return np.split(batch, self._num_micro_steps)

    def global_batches(self, epoch: int) -> list[np.ndarray]:
        """Return the row numbers of every global batch of ``epoch``, int64 ``[global_batch_size]`` each."""
        order = shuffled(len(self.lengths), self.seed, epoch)
        size = self.global_batch_size
        batches: list[np.ndarray] = []
        for start in range(0, len(order), size * self.window_batches):
            window = order[start : start + size * self.window_batches]
            if self.window_batches > 1:
                window = window[np.argsort(self.lengths[window], kind="stable")]
            cut = [window[first : first + size] for first in range(0, len(window), size)]
            batches.extend(cut[place] for place in shuffled(len(cut), self.seed, epoch, start))
        ragged = next((place for place, batch in enumerate(batches) if len(batch) < size), None)
        if ragged is not None:
            batches.append(self._filled(batches.pop(ragged)))
        return batches

    def _filled(self, batch: np.ndarray) -> np.ndarray:
        """Return ``batch`` filled up to the global batch size with its shortest row, without targets."""
        shortest = batch[np.argmin(self.lengths[batch])]
        return np.concatenate([batch, np.full(self.global_batch_size - len(batch), ~shortest)])

    def tokens(self, batch: np.ndarray) -> tuple[int, int]:
        """Return the real tokens of a global batch and the places that its micro-batches hold, padding included."""
        real = int(self.lengths[batch[batch >= 0]].sum())
        places = 0
        for micro in self.micro_batches(batch):
            for rank in range(self.world_size):
                rows = micro[rank :: self.world_size]
                places += len(rows) * int(self.lengths[np.where(rows < 0, ~rows, rows)].max())
        return real, places


class TrainingRows:
    """The dataset behind the sampler: a negative index gives that row with no target.

    Args:
        features: The encoded rows.
        ignored: The label that is no target.
    """

    def __init__(self, features: Features, ignored: int) -> None:
        self.features = features
        self.ignored = ignored

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.features)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return row ``index``, or row ``~index`` with its labels ignored where ``index`` is negative."""
        if index >= 0:
            return self.features[index]
        row = self.features[~index]
        return {**row, "labels": np.full_like(row["labels"], self.ignored)}


def padding_fraction(batches: Sequence[tuple[int, int]]) -> float:
    """Return the share of places that hold padding, from pairs of real tokens and places."""
    places = sum(pair[1] for pair in batches)
    return 1.0 - sum(pair[0] for pair in batches) / places if places else 0.0
