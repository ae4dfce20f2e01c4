"""The README.md that lies beside trained weights."""

from collections.abc import Mapping
from typing import Any

from finelaunch.reporting.figures import figure_rows, figure_text

_USE = {
    "question_answering": "finelaunch predict RUN --question 'Who …?' --context 'A passage.'",
    "text_classification": "finelaunch predict RUN --text 'A text.'",
    "causal_lm": "finelaunch predict RUN --text 'A question.'",
}


def model_card(name: str, stated: Mapping[str, Any], manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return a model card in Markdown.

    Args:
        name: The run's name.
        stated: Recipe and profile.
        manifest: The run's manifest.
        metrics: The run's figures.
    """
    base, task, training = manifest["model"], stated["task"]["name"], stated["training"]
    origin = base["name"] or f"a new {stated['model']['config'].get('model_type')} model"
    parameters, engine = manifest["parameters"], manifest["engine"]
    lines = [
        f"# {name}",
        "",
        f"{task} by finelaunch {manifest['finelaunch']}, from {origin} ({base['fingerprint']}).",
        f"Method {stated['method']['name']}: {parameters['trainable']:,} of {parameters['total']:,} parameters, "
        f"{metrics['train']['steps']} steps of {training['global_batch_size']} rows, learning rate "
        f"{training['learning_rate']:g}, seed {training['seed']}, {engine['precision']} on {engine['device']}.",
        "",
        "## Data",
        "",
        *_data_lines(manifest["data"]),
        "",
        "## Figures",
        "",
        *_figure_lines(metrics),
        "",
        "base and tuned are measured on data.test, which nothing was chosen by; thresholds are chosen on validation.",
        "",
        "## Use",
        "",
        "```",
        _USE[task],
        "```",
    ]
    if manifest["warnings"]:
        lines += ["", "## To know", "", *(f"- {warning}" for warning in manifest["warnings"])]
    return "\n".join(lines) + "\n"


def _data_lines(data: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, split in data.items():
        facts = [f"{key} {split[key]}" for key in ("source", "licence", "citation") if split.get(key)]
        about = f" ({'; '.join(facts)})" if facts else ""
        lines.append(f"- {name}: {split['num_examples']:,} examples from `{split['path']}`{about}")
    return lines


def _figure_lines(metrics: Mapping[str, Any]) -> list[str]:
    rows = figure_rows(metrics)
    if not rows:
        return ["Nothing was measured."]
    columns = list(rows[0][1])
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    return lines + [f"| {name} | " + " | ".join(map(figure_text, values.values())) + " |" for name, values in rows]
