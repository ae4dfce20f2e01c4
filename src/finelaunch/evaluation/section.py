"""The ``evaluation`` section of a recipe."""

from collections.abc import Iterator

from pydantic import Field

from finelaunch.section.base import Section, SettingError


class EvaluationSection(Section):
    """What to measure besides the tuned model."""

    base: bool = Field(default=True, description="measure the untuned model on data.test first")
    metrics: list[str] = Field(
        default=[], description="further metrics of the evaluate library, by name; each needs the hub or a local folder"
    )
    num_generations: int = Field(
        default=8,
        ge=0,
        description="causal_lm: test prompts that the tuned model answers, and validation prompts after each epoch",
    )
    sample_prompts: list[str] = Field(
        default=[],
        description="causal_lm: what the untuned model, and the model after each epoch, is asked (answers.jsonl); "
        "none: the first num_generations prompts of data.validation",
    )
    max_new_tokens: int = Field(default=64, ge=1, description="causal_lm: longest generated answer, in tokens")

    def faults(self) -> Iterator[SettingError]:
        """Yield prompts that ask nothing, or twice the same."""
        asked: set[str] = set()
        for number, prompt in enumerate(self.sample_prompts):
            if not prompt.strip():
                yield SettingError(f"sample_prompts[{number}]", "is empty", "a text")
            elif prompt in asked:
                yield SettingError(f"sample_prompts[{number}]", f"{prompt!r:.60} stands there twice")
            asked.add(prompt)
