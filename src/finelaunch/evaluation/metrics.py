"""finelaunch's metrics as objects of the ``evaluate`` library, and that library's metrics by name.

``evaluate.load`` fetches the code of a metric from the hub; ours are subclasses in this package and need no network.
"""

from collections.abc import Sequence
from typing import Any

from finelaunch.errors import RequirementMissing


def further_metrics(names: Sequence[str], predictions: list[Any], references: list[Any]) -> dict[str, Any]:
    """Return the figures of metrics of the ``evaluate`` library.

    Args:
        names: Names on the hub, or local folders that hold a metric.
        predictions: As the metrics take them.
        references: As the metrics take them.

    Raises:
        RequirementMissing: A metric that is neither cached nor reachable, or that does not take these inputs.
    """
    if not names:
        return {}
    import evaluate

    figures: dict[str, Any] = {}
    for name in names:
        try:
            found = evaluate.load(name).compute(predictions=predictions, references=references)
        except Exception as error:  # the library lets anything through that a metric's own code raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RequirementMissing(
                f"evaluation.metrics: {name!r} cannot be computed: {reason:.200}; metrics of the evaluate library need "
                "the hub or its cache; leave it out, or give a local folder"
            ) from None
        figures |= {f"{name.rstrip('/').split('/')[-1]}.{key}": value for key, value in (found or {}).items()}
    return figures
