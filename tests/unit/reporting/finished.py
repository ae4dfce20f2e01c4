"""Finished runs as real runs write them, with chosen predictions."""

import json

from finelaunch.recipe.load import load_recipe, read_overrides
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_json, write_lines

RECIPES = {task: f"{folder}/smoke" for task, folder in (
    ("text_classification", "imdb"), ("question_answering", "squad_v2"), ("causal_lm", "domain_assistant")
)}  # fmt: skip
TRAIN = {
    "loss": 0.5,
    "steps": 34,
    "samples_per_second": 158.2,
    "tokens_per_second": 8585.0,
    "peak_host_bytes": 600_518_656,
    "peak_device_bytes": None,
    "model_bytes": 574_728,
}
ENGINE = {
    "name": "single",
    "world_size": 1,
    "device": "cpu",
    "precision": "fp32",
    "global_batch_size": 8,
    "devices": ["node cpu"],
}
HOST = {"name": "node", "num_cpus": 2}
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0"}


def reviews(*right):
    """Return predictions of a classifier: right where ``right`` says so."""
    return [
        {"id": f"{number}", "prediction": "good" if good else "bad", "scores": {}, "reference": "good"}
        for number, good in enumerate(right)
    ]


def losses(*rows):
    """Return predictions of a language model: pairs of loss and tokens."""
    return [
        {"id": f"{number}", "prediction": None, "loss": loss, "num_target_tokens": count}
        for number, (loss, count) in enumerate(rows)
    ]


def finished_run(
    folder, predictions, figures, *words, task="text_classification", base=None, train=TRAIN, events=(), **noted
):
    """Write a finished run of a smoke recipe with ``words`` laid over it, and sections ``noted`` in its manifest."""
    recipe, _ = load_recipe(RECIPES[task], read_overrides(words)["recipe"])
    run = RunDirectory(folder)
    run.begin(recipe.model_dump(mode="json"), {"target": "inprocess"}, ["finelaunch", "train"])
    for event, facts in (("started", {}), *events, ("saved", {"bytes": 1_800_000}), ("finished", {})):
        run.record(event, **facts)
    data = {
        "train": {"path": "train.jsonl", "fingerprint": "a" * 64, "num_examples": 270},
        "validation": {"path": "held out", "fingerprint": None, "num_examples": 30},
    }
    if figures is not None:
        data["test"] = {"path": "test.jsonl", "fingerprint": "b" * 64, "num_examples": len(predictions)}
    run.note(**{
        "host": HOST,
        "versions": VERSIONS,
        "commit": "88ecd1f6" * 5,
        "data": data,
        "engine": ENGINE,
        "model": {"name": None, "init": "scratch", "fingerprint": "scratch"},
        "parameters": {"total": 143_682, "trainable": 143_682},
        **noted,
    })  # fmt: skip
    write_lines(run.predictions, predictions)
    write_json(run.metrics, {
        "task": task,
        "base": base,
        "validation": {"loss": 0.5},
        "eval": figures,
        "train": train,
        "seconds": {"train": 4.2},
    })  # fmt: skip
    run.model.mkdir()
    (run.model / "model.safetensors").write_bytes(bytes(600))
    return run


def edit(path, *keys, value):
    """Set what stands under ``keys`` in a JSON file; DELETE takes it away."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is DELETE:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


DELETE = object()
