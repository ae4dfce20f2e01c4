"""Which examples go where: a drawn number of them, and a share held out to choose by.

Both depend on ``data.seed`` and the examples alone, never on the training seed or the machine.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from finelaunch.data.order import shuffled

STRATUM_SEPARATOR = "\0"
"""Stands between the labels of a stratum that has several."""


def draw(num_examples: int, max_samples: int | None, seed: int) -> list[int]:
    """Return the ascending indexes of ``max_samples`` examples drawn without replacement, or of all of them."""
    if max_samples is None or max_samples >= num_examples:
        return list(range(num_examples))
    return sorted(shuffled(num_examples, "draw", seed)[:max_samples].tolist())


def pooled(strata: Sequence[str], fraction: float) -> list[str]:
    """Return the strata with label sets too rare to hold out a row of replaced by the rarest of their labels.

    Where rows have several labels, most label sets may stand in one row each, and nothing could be held out by set. A
    stratum of one label stays.

    Args:
        strata: For each example its labels, with :data:`STRATUM_SEPARATOR` between them.
        fraction: Share of the examples to hold out.
    """
    rows_of_set = Counter(strata)
    rows_of_label = Counter(label for stratum in strata for label in stratum.split(STRATUM_SEPARATOR))

    def of(stratum: str) -> str:
        if rows_of_set[stratum] * fraction >= 1:
            return stratum
        return min(stratum.split(STRATUM_SEPARATOR), key=lambda label: (rows_of_label[label], label))

    return [of(stratum) for stratum in strata]


def hold_out(groups: Sequence[str], strata: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split examples into those that stay and those held out.

    Whole groups are drawn until each stratum has given its share, so that no group stands on both sides and every label
    keeps its share; what rounding takes from one stratum the next one makes up for. One group of every stratum stays,
    so that no label is missing from what is trained on, and at least one group is held out.

    Args:
        groups: For each example what must stay together; examples of one group count into the stratum of its first.
        strata: For each example whose share is to be kept.
        fraction: Share of the examples to hold out, between 0 and 1.
        seed: Seed of the draw.

    Returns:
        The indexes that stay and those held out, each ascending.

    Raises:
        ValueError: All examples form one group.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    if len(members) < 2:
        raise ValueError("all examples form one group")
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for group, indexes in members.items():
        by_stratum[strata[indexes[0]]].append(group)
    out: set[int] = set()
    owed = 0.0
    for stratum in sorted(by_stratum):
        names = by_stratum[stratum]
        drawn = [members[names[place]] for place in shuffled(len(names), "hold out", seed, stratum)]
        owed = min(owed, max(map(len, drawn))) + fraction * sum(map(len, drawn))
        for group in drawn[:-1]:
            if len(group) / 2 <= owed:
                out.update(group)
                owed -= len(group)
    out = out or set(min(members.values(), key=len))
    return [index for index in range(len(groups)) if index not in out], sorted(out)
