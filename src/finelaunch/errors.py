"""The ways a command can end other than well.

A user's mistake is a :class:`Problem`: where it stands, which key, what is wrong, what is allowed, what to do. One
:class:`BadInput` carries all the problems of one input, so that they are said at once. Everything raised here is
printed without a traceback by the command line; any other exception is a fault of ours and keeps its traceback.
"""

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_REQUIREMENT = 3
EXIT_STOPPED = 75


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input.

    Args:
        origin: Where it stands: ``file:line`` of a recipe, ``file:row N`` of data, or the command-line word.
        key: The dotted key or the column concerned; empty where the whole input is meant.
        what: What is wrong, with the value found.
        allowed: What would be accepted; empty where ``remedy`` says it all.
        remedy: What to do.
    """

    origin: str
    key: str
    what: str
    allowed: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        """Return ``origin: key: what is wrong; what is allowed; what to do``, leaving out the empty parts."""
        place = ": ".join(part for part in (self.origin, self.key) if part)
        said = "; ".join(part for part in (self.what, self.allowed, self.remedy) if part)
        return f"{place}: {said}" if place else said


class FinelaunchError(Exception):
    """An end that the user can act on; its text is complete and is printed as it is."""

    exit_code = EXIT_FAILURE


class BadInput(FinelaunchError):
    """The recipe, profile, data or command line is wrong.

    Args:
        problems: All that is wrong, at least one.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))


class RequirementMissing(FinelaunchError):
    """Something outside the input is missing: a package, a device, the network, a file of the hub."""

    exit_code = EXIT_REQUIREMENT


class LostPeer(FinelaunchError):
    """Another rank has ended, or did not answer in time; it is that rank that has something to say."""


class Interrupted(BaseException):
    """A signal asked for the end.

    Not a KeyboardInterrupt, which the command-line library would answer with an exit code of its own.

    Args:
        reason: Such as ``SIGTERM``.
        agreed: Whether all ranks are here, so that they can end together.
    """

    def __init__(self, reason: str, agreed: bool = False) -> None:
        self.agreed = agreed
        super().__init__(reason)


class Stopped(FinelaunchError):
    """The run was stopped by a signal and can be continued by the same command.

    Args:
        text: What was stopped and what continues it.
        agreed: Whether all ranks are here, so that they can end together.
        reason: What asked for it, such as ``SIGTERM``, of whichever rank.
    """

    exit_code = EXIT_STOPPED

    def __init__(self, text: str, agreed: bool = False, reason: str = "") -> None:
        self.agreed = agreed
        self.reason = reason
        super().__init__(text)
