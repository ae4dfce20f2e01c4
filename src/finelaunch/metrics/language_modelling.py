"""Loss and perplexity of a language model over a data set, from sums that do not depend on how it was batched."""

import math

import numpy as np
from numpy.typing import ArrayLike


def perplexity_metrics(loss_sums: ArrayLike, target_counts: ArrayLike) -> dict[str, float]:
    """Return the mean loss per target token and its exponential.

    The sum is rounded once, so the figures are the same in whatever order and on however many ranks it was gathered.

    Args:
        loss_sums: float [rows], the cross entropy summed over the targets of each row or batch, in nats.
        target_counts: int [rows], the number of those targets.

    Returns:
        ``loss`` (nats per token), ``perplexity`` (inf where it exceeds float64) and ``num_target_tokens``.

    Raises:
        ValueError: No targets at all, shapes differ, a negative count, a count that is no integer, a loss of NaN or
            -inf.
    """
    sums, counts = np.asarray(loss_sums, dtype=np.float64), np.asarray(target_counts)
    if sums.ndim != 1 or sums.shape != counts.shape:
        raise ValueError(f"expected two [rows] arrays, got {sums.shape} and {counts.shape}")
    if counts.size and (not np.issubdtype(counts.dtype, np.integer) or counts.min() < 0):
        raise ValueError("target counts must be integers from 0")
    if np.isnan(sums).any() or np.isneginf(sums).any():
        raise ValueError(f"{int((np.isnan(sums) | np.isneginf(sums)).sum())} of {len(sums)} losses are NaN or -inf")
    if (num_target_tokens := sum(counts.tolist())) == 0:
        raise ValueError("there are no target tokens")
    loss = math.fsum(sums) / num_target_tokens
    try:
        perplexity = math.exp(loss)
    except OverflowError:
        perplexity = math.inf
    return {"loss": loss, "perplexity": perplexity, "num_target_tokens": num_target_tokens}
