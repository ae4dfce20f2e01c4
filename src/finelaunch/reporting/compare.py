"""What several runs cost and how good they are, side by side; a pure function of their files.

Only runs of one task have figures of one unit. Whatever else makes two runs unequal (test rows, training rows, steps,
machine) is said below the table, so that no difference of the runs is read as one of the methods.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finelaunch.errors import BadInput, Problem
from finelaunch.recipe.load import flatten
from finelaunch.reporting.compare_rows import MeasuredRows, differences, read_rows
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines, size_of

FIGURES = {
    "text_classification": ("accuracy", "f1_macro", "f1_samples", "hamming_loss", "loss"),
    "question_answering": ("exact_match", "f1", "HasAns_f1", "NoAns_exact", "no_answer_auc", "always_no_answer"),
    "causal_lm": ("loss", "perplexity"),
}
"""The quality figures that are compared, by task, the main ones first."""
COSTS = (
    "loss",
    "steps",
    "samples_per_second",
    "tokens_per_second",
    "peak_host_bytes",
    "peak_device_bytes",
    "model_bytes",
)
"""The keys of ``train`` in a ``metrics.json``."""

_SHORT = {"quantization_type": "{}", "rank": "rank {}", "alpha": "alpha {:g}", "num_stages": "{} stages"}
_SHORT |= {"num_virtual_tokens": "{} tokens"}
_SWITCHES = {"use_dora": "DoRA", "use_rslora": "rank-stabilised"}


@dataclass(frozen=True)
class Compared:
    """One run, as far as it is compared.

    Args:
        name: What its column is called.
        facts: Everything of it that is shown, for JSON.
        settings: What should be equal for its figures to be those of its method, by name, in words.
        test: What the test rows are; figures of runs with another value were measured on other rows.
        rows: Of data.test, with the figures that its predictions give.
    """

    name: str
    facts: dict[str, Any]
    settings: dict[str, str]
    test: Any
    rows: MeasuredRows = field(default_factory=MeasuredRows)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Args:
        task: Of all of them.
        runs: In the order in which they were named.
        notes: What is to be known before the columns are compared.
    """

    task: str
    runs: Sequence[Compared]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        runs = [{"name": run.name, **run.facts} for run in self.runs]
        return {"task": self.task, "runs": runs, "notes": list(self.notes)}


def compare(runs: Sequence[RunDirectory]) -> Comparison:
    """Return ``runs`` side by side.

    Raises:
        BadInput: Fewer than two runs, one that is named twice, is not finished or damaged, or runs of several tasks.
    """
    _require_several(runs)
    names = [run.path.resolve().name for run in runs]
    labels = [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]
    for run in runs:
        _require_finished(run)
    tasks = [str(_content(run.metrics).get("task")) for run in runs]
    if unknown := [(run, task) for run, task in zip(runs, tasks, strict=True) if task not in FIGURES]:
        run, task = unknown[0]
        raise BadInput(_damage(run.metrics, f"names no task that is known: {task:.40}"))
    if len(set(tasks)) > 1:
        said = ", ".join(f"{label} {task}" for label, task in zip(labels, tasks, strict=True))
        what = f"their tasks differ ({said}), and so do the units of their figures"
        raise BadInput(Problem("command line", "RUN", what, "runs of one task"))
    notes: list[str] = []
    compared = [_compared(run, label, notes) for run, label in zip(runs, labels, strict=True)]
    notes += _differing(compared)
    _add_differences(compared, notes)
    return Comparison(tasks[0], compared, notes)


def _require_several(runs: Sequence[RunDirectory]) -> None:
    if len(runs) < 2:
        raise BadInput(Problem("command line", "RUN", "one run alone has nothing to compare with", "two runs or more"))
    places = [run.path.resolve() for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise BadInput(Problem("command line", "RUN", f"{runs[number].path} is named twice", "each run once"))


def _require_finished(run: RunDirectory) -> None:
    if not run.finished():
        what, remedy = "is not finished", "the command that began it continues it; finelaunch status says how far it is"
        raise BadInput(Problem(str(run.path), "", what, "", remedy))


def _damage(path: Path, what: str) -> Problem:
    return Problem(str(path), "", what, "", "copy the run again")


def _content(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a run.

    Raises:
        BadInput: There is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise BadInput(_damage(path, "is missing or no JSON object"))
    return content


def _compared(run: RunDirectory, name: str, notes: list[str]) -> Compared:
    """Return what one run says of itself; what it lacks is said in ``notes``."""
    metrics, manifest, stated = _content(run.metrics), _content(run.manifest), run.stated()
    try:
        return _read(run, name, metrics, manifest, stated, notes)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise BadInput(_damage(run.path, f"its files are damaged: {type(error).__name__} {error!s:.80}")) from None


def _read(
    run: RunDirectory,
    name: str,
    metrics: Mapping[str, Any],
    manifest: Mapping[str, Any],
    stated: Mapping[str, Any],
    notes: list[str],
) -> Compared:
    task, training, engine = metrics["task"], stated["training"], manifest["engine"]
    events = read_lines(run.events)
    starts = sum(event.get("event") == "started" for event in events)
    if starts > 1:
        notes.append(f"{name} was started {starts} times: its seconds and memory are those of its last start")
    tuned, base, parameters = metrics["eval"], metrics["base"], manifest["parameters"]
    rows, lacking = (MeasuredRows(), []) if tuned is None else read_rows(task, run.predictions, tuned)
    notes += [f"{name} {what}" for what in lacking]
    if tuned is None:
        notes.append(f"{name} has no data.test, so nothing says how good it is on rows that it was not chosen by")
    data = {split: dict(facts) for split, facts in manifest["data"].items()}
    saved = [event["bytes"] for event in events if event.get("event") == "saved"]
    facts = {
        "run": str(run.path),
        "method": dict(stated["method"]),
        "method_settings": _method_settings(stated["method"]),
        "engine": {key: engine[key] for key in ("name", "world_size", "device", "precision")},
        "parameters": {**parameters, "share": parameters["trainable"] / parameters["total"]},
        "learning_rate": float(training["learning_rate"]),
        "num_train_examples": int(data["train"]["num_examples"]),
        "num_test_examples": int(data["test"]["num_examples"]) if "test" in data else None,
        "eval": _numbers(tuned, FIGURES[task]),
        "base": _numbers(base, FIGURES[task]),
        "intervals": rows.intervals(),
        "train": _numbers(metrics["train"], COSTS),
        "train_seconds": float(metrics["seconds"]["train"]),
        "checkpoint_bytes": max(saved, default=None),
        "delivered_bytes": size_of(run.model),
    }
    if "loss" in facts["intervals"]:
        facts["intervals"]["perplexity"] = tuple(map(float, np.exp(facts["intervals"]["loss"])))
    if missing := [key for key in COSTS if key not in metrics["train"]]:
        notes.append(f"{name} was trained by an older version, which did not write down {', '.join(missing)}")
    return Compared(name, facts, _settings(stated, manifest, facts, data), _test(data, stated), rows)


def _numbers(figures: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, float | None] | None:
    """Return those of ``names`` that were measured, None where nothing was; what is there and no number is a damage."""
    if figures is None:
        return None
    found = {name: figures[name] for name in names if name in figures}
    for name, value in found.items():
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (np.isfinite(value) or name == "perplexity"):
            raise ValueError(f"{name} is {value!r:.40}")
    return found


def _method_settings(method: Mapping[str, Any]) -> str:
    """Return those keys of a method by which runs of it differ most, in words."""
    parts = [text.format(method[key]) for key, text in _SHORT.items() if method.get(key) is not None]
    targets, start = method.get("target_modules"), method.get("init_lora_weights")
    if targets not in (None, "default"):
        parts.append(targets if isinstance(targets, str) else "+".join(targets))
    parts += [word for key, word in _SWITCHES.items() if method.get(key)]
    return ", ".join([*parts, *([start] if start not in (None, "default") else [])])


def _test(data: Mapping[str, Any], stated: Mapping[str, Any]) -> Any:
    """Return what decides which rows the figures were measured on."""
    if "test" not in data:
        return None
    is_drawn = any(key.endswith("max_samples") and count for key, count in _leaves(stated["data"]["test"]))
    drawn = stated["data"]["seed"] if is_drawn else None
    return [_fingerprint(data["test"]), data["test"]["num_examples"], drawn]


def _leaves(split: Any) -> list[tuple[str, Any]]:
    """Return the keys and values of a split: one source, or a list of them."""
    sources = split if isinstance(split, list) else [split]
    return [leaf for source in sources for leaf in flatten(source)]


def _fingerprint(split: Mapping[str, Any]) -> str:
    """Return the beginning of the fingerprint of each source of a split."""
    sources = split["sources"].values() if split.get("sources") else [split]
    return " + ".join(str(source["fingerprint"])[:12] for source in sources)


def _settings(
    stated: Mapping[str, Any], manifest: Mapping[str, Any], facts: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, str]:
    """Return what makes two runs unequal beside their method, in words, by what it is."""
    engine, host, model = manifest["engine"], manifest["host"], manifest["model"]
    batch, steps = engine["global_batch_size"], facts["train"].get("steps")
    versions = {name: manifest["versions"].get(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}
    train = data["train"]
    named = model["name"] or "new weights"
    settings = {
        "base model": f"{named} ({model['fingerprint']!s:.12})",
        "training rows": f"{train['num_examples']:,} of {train['path']} ({_fingerprint(train)})",
        "training": f"{steps} steps x {batch} rows",
        "engine": f"{engine['name']}, {engine['world_size']} x {engine['device']}, {engine['precision']}",
        "machine": f"{', '.join(dict.fromkeys(engine['devices']))}, {host['num_cpus']} CPU cores",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value),
        "finelaunch": f"{manifest['finelaunch']} {(manifest['commit'] or '')[:8]}".strip(),
        "seed": str(stated["training"]["seed"]),
    }
    task = {f"task.{key}": str(value) for key, value in flatten(stated["task"])}
    return {**settings, **task}


def _differing(runs: Sequence[Compared]) -> list[str]:
    """Return a sentence for each thing, beside the method, in which the runs differ."""
    notes = []
    if any(run.test != runs[0].test for run in runs):
        said = "; ".join(f"{run.name} {_test_in_words(run.test)}" for run in runs)
        notes.append(f"the test rows differ, so quality cannot be compared: {said}")
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key, "-") for run in runs]
        if len(set(values)) > 1:
            notes.append(f"{key}: {'; '.join(f'{run.name} {own}' for run, own in zip(runs, values, strict=True))}")
    return notes


def _test_in_words(test: Any) -> str:
    if test is None:
        return "none"
    fingerprint, count, drawn = test
    return f"{count:,} ({fingerprint}{f', drawn by data.seed {drawn}' if drawn is not None else ''})"


def _add_differences(runs: Sequence[Compared], notes: list[str]) -> None:
    """Add to each run what it is better or worse by than the first one, with its interval, on the same test rows."""
    first = runs[0]
    for run in runs[1:]:
        run.facts["difference"] = {}
        if run.test != first.test:
            continue
        found, why = differences(first.rows, run.rows)
        run.facts["difference"] = {key: {"to": first.name, **about} for key, about in found.items()}
        notes += [f"{run.name} and {first.name} {one}" for one in why]
