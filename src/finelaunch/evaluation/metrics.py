"""Metrics of the ``evaluate`` library, named in a recipe beside the task's own.

The task's own figures need no network; ``evaluate.load`` fetches the code of a metric from the hub, or takes a folder.
"""

from collections.abc import Sequence
from typing import Any

from finelaunch.errors import RequirementMissing


def require_metrics(names: Sequence[str]) -> None:
    """Load the metrics, so that one that is out of reach is said before training.

    Raises:
        RequirementMissing: One is neither cached nor reachable.
    """
    for name in names:
        _loaded(name)


def _loaded(name: str) -> Any:
    import evaluate

    try:
        return evaluate.load(name)
    except Exception as error:  # the library lets anything through that a metric's own code raises
        raise _refusal(name, "cannot be loaded", error) from None


def _refusal(name: str, what: str, error: Exception) -> RequirementMissing:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return RequirementMissing(
        f"evaluation.metrics: {name!r} {what}: {reason:.200}; metrics of the evaluate library need the hub or its "
        "cache; leave it out, or give a local folder"
    )


def further_metrics(names: Sequence[str], predictions: list[Any], references: list[Any]) -> dict[str, Any]:
    """Return the figures of metrics of the ``evaluate`` library.

    Args:
        names: Names on the hub, or local folders that hold a metric.
        predictions: As the metrics take them.
        references: As the metrics take them.

    Raises:
        RequirementMissing: A metric that is neither cached nor reachable, or that does not take these inputs.
    """
    figures: dict[str, Any] = {}
    for name in names:
        metric = _loaded(name)
        try:
            found = metric.compute(predictions=predictions, references=references)
        except Exception as error:  # as above
            raise _refusal(name, "cannot be computed", error) from None
        figures |= {f"{name.rstrip('/').split('/')[-1]}.{key}": value for key, value in (found or {}).items()}
    return figures
