"""The answers of a causal LM to the same few prompts: of the untuned model, and after each epoch.

They stand in ``answers.jsonl`` of the run directory, and side by side on a page of tensorboard. Each time the file is
written whole, so a step is answered altogether or not at all, and a run that goes on from a checkpoint drops what is of
later steps and makes it again.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finelaunch.data.cache import content_key
from finelaunch.data.checks import RowError
from finelaunch.errors import BadInput, Problem
from finelaunch.evaluation.generate import Generation, fitted, generate
from finelaunch.evaluation.section import EvaluationSection
from finelaunch.run.directory import RunDirectory, Stopwatch
from finelaunch.run.files import read_lines, write_lines
from finelaunch.run.log import say
from finelaunch.tasks.base import Measured
from finelaunch.tasks.causal_lm import CausalLM, asked_of
from finelaunch.tasks.conversations import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finelaunch.preparation import Prepared

SHOWN = 2
"""Answers of each time that are said in the log."""
SHOWN_CHARACTERS = 100
PAGE_CHARACTERS = 600
"""Longest text in a cell of tensorboard's page; the file has all of it."""


@dataclass(frozen=True)
class Prompt:
    """What is asked.

    Args:
        id: Of the example, or ``prompt-1`` and so on.
        text: What a reader sees of it.
        tokens: What the model sees of it.
        reference: What the data answer; None for a prompt of the recipe.
    """

    id: str
    text: str
    tokens: Sequence[int]
    reference: str | None


class Answers:
    """Answers the prompts with the model at hand, on all ranks, and writes on the first.

    Args:
        run: The run directory.
        tokenizer: The model's tokenizer.
        prompts: What is asked.
        how: How answers are generated: greedily, so that no random state is touched.
        stop_ids: Tokens that end an answer.
        base: What is tuned, by its fingerprint: answers of another base are dropped.
        source: Where the prompts come from, for the manifest.
    """

    def __init__(
        self,
        run: RunDirectory,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[Prompt],
        how: Generation,
        stop_ids: Sequence[int],
        base: str,
        source: str,
    ) -> None:
        self.run = run
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.how = how
        self.stop_ids = list(stop_ids)
        self.stated = {"prompts": source, "num_prompts": len(prompts), "max_new_tokens": how.max_new_tokens}
        asked = [[prompt.id, list(prompt.tokens)] for prompt in prompts]
        self.stated["key"] = content_key({"asked": asked, "max_new_tokens": how.max_new_tokens, "base": base})

    def begin(self, step: int) -> None:
        """Drop the answers of later steps, and where training begins, those of an attempt that was another.

        Where it begins from the checkpoint of another run all are of a course that was given up.
        """
        if not self.run.writes:
            return
        is_same = self.run.read_manifest().get("answers") == self.stated
        events = reversed(read_lines(self.run.events))
        start = next((event for event in events if event.get("event") == "training"), {})
        is_given_up = start.get("foreign", False) and start["from_step"] == step
        keeps = not is_given_up and (step > 0 or is_same)
        kept = [row for row in read_lines(self.run.answers) if keeps and row["step"] <= step]
        if self.run.answers.exists():
            write_lines(self.run.answers, kept)
        if not is_same:
            self.run.note(answers=self.stated)

    def is_done(self, step: int) -> bool:
        """Return whether the prompts were answered after ``step``."""
        return any(row["step"] == step for row in read_lines(self.run.answers))

    def __call__(self, model: Any, step: int, epoch: float, page: Callable[[str, str, int], None]) -> None:
        """Answer the prompts with ``model``, all ranks together."""
        seconds = Stopwatch()
        tokens = fitted(model, [prompt.tokens for prompt in self.prompts], self.how.max_new_tokens)
        self.prompts = [replace(prompt, tokens=one) for prompt, one in zip(self.prompts, tokens, strict=True)]
        answers = generate(model, self.tokenizer, tokens, self.how, self.stop_ids)
        if not self.run.writes:
            return
        rows = [
            {
                "step": step,
                "epoch": epoch,
                "id": prompt.id,
                "prompt": prompt.text,
                "answer": answer,
                "reference": prompt.reference,
            }
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        rows = [*read_lines(self.run.answers), *rows]
        page("answers", as_page(rows), step)
        write_lines(self.run.answers, rows)
        self.run.record("answered", step=step, seconds=round(seconds.lap("answers"), 3))
        say(f"{_when(step, epoch)}: {len(answers)} prompts are answered in {self.run.answers.name}")
        for prompt, answer in list(zip(self.prompts, answers, strict=True))[:SHOWN]:
            say(f"  {_short(prompt.text)!r} -> {_short(answer)!r}")


def answers_of(
    section: EvaluationSection, task: Any, prepared: "Prepared", run: RunDirectory, base: str
) -> Answers | None:
    """Return what answers the prompts of a recipe, None where it asks for none or the task has no answers.

    Args:
        section: The recipe's ``evaluation`` section.
        task: Its task.
        prepared: The prepared data.
        run: The run directory.
        base: Fingerprint of what is tuned.

    Raises:
        BadInput: The chat template refuses a prompt.
    """
    if not isinstance(task, CausalLM):
        return None
    tokenizer, prompts, source = prepared.tokenizer, [], "evaluation.sample_prompts"
    ask = task.go_on if prepared.facts.get("plain_text") else task.ask
    for number, text in enumerate(section.sample_prompts):
        try:
            messages = ask({"text": text}, "")["messages"]
            prompts.append(Prompt(f"prompt-{number + 1}", text, task.prompt_ids(messages, tokenizer), None))
        except (BadInput, RowError) as error:
            problem = error.problems[0] if isinstance(error, BadInput) else error
            key = f"evaluation.sample_prompts[{number}]"
            raise BadInput(Problem("recipe", key, problem.what, problem.allowed, problem.remedy)) from None
    if not prompts:
        source = "data.validation"
        for example in prepared.splits["validation"].examples[: section.num_generations]:
            messages, reference = asked_of(example["messages"])
            prompts.append(Prompt(str(example["id"]), _text(messages), task.prompt_ids(messages, tokenizer), reference))
    if not prompts:
        return None
    how = Generation(max_new_tokens=section.max_new_tokens)
    return Answers(run, tokenizer, prompts, how, task.stop_ids(tokenizer), base, source)


def with_answers(
    section: EvaluationSection, task: Any, model: Any, tokenizer: "PreTrainedTokenizerBase", measured: Measured
) -> list[dict[str, Any]]:
    """Return the predictions of ``measured``; those of a causal LM with the first prompts answered by ``model``."""
    count = section.num_generations
    if not isinstance(task, CausalLM) or not count:
        return measured.predictions
    rows = measured.predictions[:count]
    prompts = [task.prompt_ids(row["prompt"], tokenizer) for row in rows]
    how = Generation(max_new_tokens=section.max_new_tokens)
    answers = generate(model, tokenizer, prompts, how, task.stop_ids(tokenizer))
    answered = [{**row, "prediction": answer} for row, answer in zip(rows, answers, strict=True)]
    return answered + measured.predictions[count:]


def as_page(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return answers as a table in Markdown: a line for each prompt, a column for each time that it was answered."""
    times = list(dict.fromkeys((row["step"], row["epoch"]) for row in rows))
    titles = ["prompt", "reference", *(_when(step, epoch) for step, epoch in times)]
    answers = {(row["id"], row["step"]): row["answer"] for row in rows}
    asked = {row["id"]: (row["prompt"], row["reference"] or "") for row in rows}
    lines = [titles, ["---"] * len(titles)]
    for name, texts in asked.items():
        lines.append([_cell(text) for text in (*texts, *(answers.get((name, step), "") for step, _ in times))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _when(step: int, epoch: float) -> str:
    return f"epoch {epoch:g} (step {step})" if step else "untuned"


def _cell(text: str) -> str:
    """Return ``text`` as it stands in a cell of a table in Markdown."""
    shown = text if len(text) <= PAGE_CHARACTERS else f"{text[:PAGE_CHARACTERS]} …"
    return "<br>".join(re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(shown, quote=False)).splitlines())


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]}…"


def _text(messages: Sequence[Message]) -> str:
    """Return messages as a reader sees them: the only one as it is, several with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)
