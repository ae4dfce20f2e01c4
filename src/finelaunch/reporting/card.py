"""The README.md that lies beside trained weights."""

import json
from collections.abc import Mapping
from typing import Any

from finelaunch.data.sources import PACKAGE_PREFIX
from finelaunch.methods.limits import ADAPTERS
from finelaunch.reporting.figures import figure_rows, figure_text

_USE = {
    "question_answering": "finelaunch predict RUN --question 'Who …?' --context 'A passage.'",
    "text_classification": "finelaunch predict RUN --text 'A text.'",
    "causal_lm": "finelaunch predict RUN --text 'A question, or the beginning of a text.'",
}
_AUTO = {
    "question_answering": "AutoModelForQuestionAnswering",
    "text_classification": "AutoModelForSequenceClassification",
    "causal_lm": "AutoModelForCausalLM",
}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_BASE_BESIDE = '"DIR/base"'
LOAD = "## Load"
"""The heading over how to load it without finelaunch."""


def model_card(name: str, stated: Mapping[str, Any], manifest: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Return a model card in Markdown.

    Args:
        name: The run's name.
        stated: Recipe and profile.
        manifest: The run's manifest.
        metrics: The run's figures.
    """
    base, task, training = manifest["model"], stated["task"]["name"], stated["training"]
    is_adapter = stated["method"]["name"] in ADAPTERS
    origin = base["name"] or f"a new {stated['model']['config'].get('model_type')} model"
    parameters, engine = manifest["parameters"], manifest["engine"]
    lines = [
        f"# {name}",
        "",
        f"{task} by finelaunch {manifest['finelaunch']}, from {origin} ({base['fingerprint']}).",
        f"Method {stated['method']['name']}: {parameters['trainable']:,} of {parameters['total']:,} parameters, "
        f"{metrics['train']['steps']} steps of {training['global_batch_size']} rows, learning rate "
        f"{training['learning_rate']:g}, seed {training['seed']}, {engine['precision']} on {engine['device']}.",
        *_selection_lines(training, metrics["train"]),
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
        "",
        LOAD,
        "",
        *(_adapter_lines(base, task, stated["method"]) if is_adapter else _whole_lines(task)),
    ]
    if manifest["warnings"]:
        lines += ["", "## To know", "", *(f"- {warning}" for warning in manifest["warnings"])]
    return "\n".join(lines) + "\n"


def _selection_lines(training: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    """Return whether training ended early, and of which step the weights are."""
    best, kept, last = (figures.get(key) for key in ("best_step", "kept_step", "steps"))
    metric, lines = training.get("metric_for_best_model"), []
    if figures.get("stopped_early"):
        times = training["early_stopping_patience"]
        lines.append(f"Training ended early, after {times} evaluation{'s' * (times != 1)} without a better {metric}.")
    if kept not in (None, last):
        lines.append(f"The weights are those of step {kept}, the best by {metric} on data.validation.")
    elif best not in (None, last):
        lines.append(
            f"The weights are those of the last step; by {metric} on data.validation step {best} was the best."
        )
    return lines


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


def _whole_lines(task: str) -> list[str]:
    """Return how to load a whole model with transformers."""
    auto = _AUTO[task]
    return [
        "Without finelaunch, by transformers:",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        f'model = {auto}.from_pretrained("DIR")',
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        "```",
    ]


def _adapter_lines(base: Mapping[str, Any], task: str, method: Mapping[str, Any]) -> list[str]:
    """Return how to load an adapter with peft, on its base as it was trained."""
    auto = _AUTO[task]
    is_scratch, quantization = base["init"] == "scratch", base.get("quantization")
    name, imports = (_BASE_BESIDE, []) if is_scratch else _name_of(str(base["name"]))
    commit = str(base["fingerprint"]).partition("+")[0].rpartition("@")
    revision = f', revision="{commit[2]}"' if commit[1] and not is_scratch else ""
    classes = ["AutoConfig", auto, "AutoTokenizer"]
    held, argument = _held_lines(quantization) if quantization else ([], "")
    if quantization:
        imports, classes = ["import json", *imports], [*classes, "BitsAndBytesConfig"]
    return [
        f"An adapter ({method['name']}) that needs its base {'in base/' if is_scratch else base['name']}, and no other "
        "one: on other weights it would answer without a word of warning. Without finelaunch, by peft:",
        "",
        "```python",
        *imports,
        "from peft import PeftModel",
        f"from transformers import {', '.join(sorted(classes))}",
        'config = AutoConfig.from_pretrained("DIR")',
        *held,
        f'base = {auto}.from_pretrained({name}{revision}, config=config, dtype="float32"{argument})',
        'model = PeftModel.from_pretrained(base, "DIR").eval()',
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        "```",
        "",
        "finelaunch export RUN --merge writes both as one plain model.",
    ]


def _name_of(name: str) -> tuple[str, list[str]]:
    """Return how Python names a base that a recipe calls ``name``, and what that imports."""
    if not name.startswith(PACKAGE_PREFIX):
        return json.dumps(name), []
    module, _, rest = name.removeprefix(PACKAGE_PREFIX).partition("/")
    return f"str(files({json.dumps(module)}) / {json.dumps(rest)})", ["from importlib.resources import files"]


def _held_lines(quantization: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return how a base in 4 bits is described to transformers, and the argument that says so."""
    lines = [
        'with open("DIR/finelaunch.json") as file:',
        '    kept = json.load(file)["base"]["quantization"]["kept"]',
        "held = BitsAndBytesConfig(",
        "    load_in_4bit=True,",
        f'    bnb_4bit_quant_type="{quantization["type"]}",',
        f"    bnb_4bit_use_double_quant={quantization['double']},",
        f'    bnb_4bit_compute_dtype="{_DTYPES[quantization["compute"]]}",',
        "    llm_int8_skip_modules=kept,",
        ")",
    ]
    return lines, ", quantization_config=held"


def merged_card(card: str, stated: Mapping[str, Any]) -> str:
    """Return the card of a merged model.

    Args:
        card: That of the adapter; may be empty.
        stated: What ``finelaunch.json`` states.
    """
    task, merged, base = stated["task"]["name"], stated["merged"], stated["base"]
    before, _, after = card.partition(f"{LOAD}\n")
    _, heading, rest = after.partition("\n## ")
    held, packed = "", ""
    if base.get("quantization"):
        held = " from weights in 4 bits, brought back to fp32 first"
        packed = f" From those of the model in 4 bits they differ by {merged['max_logit_difference_from_4_bits']:.3g}."
    lines = [
        LOAD,
        "",
        f"Merged: {base['name'] or 'a drawn base'} and its {stated['method']['name']} adapter, in fp32{held}. Its "
        f"logits differ from the adapter's by at most {merged['max_logit_difference']:.3g}, where their standard "
        f"deviation is {merged['logits_std']:.3g}.{packed}",
        "",
        *_whole_lines(task),
    ]
    return (before or f"# {task}\n\n") + "\n".join(lines) + "\n" + (f"{heading}{rest}" if heading else "")
