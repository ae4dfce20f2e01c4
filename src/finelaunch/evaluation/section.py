"""The ``evaluation`` section of a recipe."""

from pydantic import Field

from finelaunch.section.base import Section


class EvaluationSection(Section):
    """What to measure besides the tuned model."""

    base: bool = Field(default=True, description="measure the untuned model on data.test first")
    metrics: list[str] = Field(
        default=[], description="further metrics of the evaluate library, by name; each needs the hub or a local folder"
    )
    num_generations: int = Field(
        default=8, ge=0, description="causal_lm: test prompts that are answered by the tuned model"
    )
    max_new_tokens: int = Field(default=64, ge=1, description="causal_lm: longest generated answer, in tokens")
