"""What is drawn for a trial: everything follows from the seed, the kind of fault and the number of the trial alone.

Nothing is drawn twice from one stream, so that a trial can be made again by itself. Choices are balanced: of every
block of as many trials as there are options, each option gets one; moments are spread evenly over the run.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Option = TypeVar("Option")


@dataclass(frozen=True)
class Trial:
    """One trial of one kind of fault.

    Args:
        kind: The kind of fault.
        index: Its number among the trials of that kind, from 0.
        seed: The seed of the whole.
    """

    kind: str
    index: int
    seed: int

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.kind}-{self.index}"

    def random(self, purpose: str) -> random.Random:
        """Return a source of random numbers that serves one purpose of this trial."""
        return random.Random(f"{self.seed}/{self.kind}/{self.index}/{purpose}")

    def one_of(self, purpose: str, options: Sequence[Option]) -> Option:
        """Return one of ``options``; in every block of ``len(options)`` trials each is returned once."""
        block, place = divmod(self.index, len(options))
        shuffled = list(options)
        random.Random(f"{self.seed}/{self.kind}/{purpose}/{block}").shuffle(shuffled)
        return shuffled[place]

    def moment(self, among: int = 1) -> float:
        """Return a place within the run, from 0 to below 1.

        The places of the first two trials fill both halves of the run, the second one first, those of the next four all
        quarters, of the next eight all eighths.

        Args:
            among: Count only every so many trials: where another choice alternates, each side is spread by itself.
        """
        level = (self.index // among + 2).bit_length() - 1
        place = self.index // among + 2 - 2**level
        turned_round = int(f"{place:0{level}b}"[::-1], 2)
        part = (turned_round + 2**level // 2) % 2**level
        return (part + self.random("moment").random()) / 2**level


def step_at(moment: float, first: int, last: int, num_epochs: float) -> int:
    """Return the step at a place within the run.

    The second half of the places lies in the second and later epochs, also where the first epoch is more than half of
    the run: what resuming does wrong shows there first.

    Args:
        moment: From 0 to below 1.
        first: The lowest step to return.
        last: The highest.
        num_epochs: Passes over the data in the whole run, which ``last`` nearly ends.
    """
    border = max(0.5, 1 / num_epochs) if num_epochs > 1 else 0.5
    place = moment * 2 * border if moment < 0.5 else border + (moment - 0.5) * 2 * (1 - border)
    return min(first + int(place * (last - first + 1)), last)
