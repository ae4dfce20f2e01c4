"""By which figures on data.validation the steps of a training are compared, and which way is better."""

from collections.abc import Mapping

LOWER_IS_BETTER = ("loss", "perplexity", "hamming_loss")
"""Figures that are better the lower they are; all others are better the higher."""

MULTI_LABEL = "multi_label"
"""Under which name the figures of texts with several labels stand beside those of the tasks."""

SELECTABLE: Mapping[str, tuple[str, ...]] = {
    "question_answering": (
        "loss",
        "exact_match",
        "f1",
        "HasAns_exact",
        "HasAns_f1",
        "NoAns_exact",
        "NoAns_f1",
        "best_exact",
        "best_f1",
        "exact_match_at_zero",
        "f1_at_zero",
        "no_answer_auc",
    ),
    "text_classification": ("loss", "accuracy", "f1_macro", "f1_micro"),
    MULTI_LABEL: ("loss", "accuracy", "f1_micro", "f1_macro", "f1_samples", "hamming_loss", "f1_micro_at_half"),
    "causal_lm": ("loss", "perplexity"),
}
"""Figures that say how good a model is, by task; counts and thresholds say nothing of it."""


def gain(name: str, value: float, other: float) -> float:
    """Return by how much ``value`` of the figure ``name`` is better than ``other``; negative where it is worse."""
    return other - value if name in LOWER_IS_BETTER else value - other


def is_selectable(name: str) -> bool:
    """Return whether the figure ``name`` says of any task how good a model is."""
    return any(name in figures for figures in SELECTABLE.values())
