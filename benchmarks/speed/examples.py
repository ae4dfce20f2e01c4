"""The example scripts of transformers, where a folder of them is given: the same rows in the files that they read.

They are not part of the installed package: a checkout has them below ``examples/pytorch``. Each script is called as its
README calls it, padding as it does by default. Their metrics would be fetched from the hub by name; in the folder where
they run lie metrics of these names that compute with finelaunch's functions, so that no network is needed.

``run_clm.py`` cuts all text into blocks of one length and has its loss on prompts, too: other work, so that only its
tokens a second compare.
"""

import json
import sys
from pathlib import Path

from rows import Work

METRICS = {
    "accuracy": """
import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        number = datasets.Value("int64")
        features = datasets.Features({"predictions": number, "references": number})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, **_):
        return {"accuracy": sum(a == b for a, b in zip(predictions, references)) / len(references)}
""",
    "squad_v2": """
import datasets
import evaluate

from finelaunch.metrics.squad import squad_metrics


class SquadV2(evaluate.Metric):
    def _info(self):
        text, number = datasets.Value("string"), datasets.Value("float32")
        answer = {"id": text, "prediction_text": text, "no_answer_probability": number}
        gold = {"id": text, "answers": {"text": [text], "answer_start": [datasets.Value("int32")]}}
        features = datasets.Features({"predictions": answer, "references": gold})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references, **_):
        figures = squad_metrics(references, {row["id"]: row["prediction_text"] for row in predictions})
        return {"exact": figures["exact_match"], "f1": figures["f1"]}
""",
}


def find_script(folder: Path, name: str) -> Path | None:
    """Return a script of ``folder`` or of a folder below it."""
    direct = folder / name
    return direct if direct.is_file() else next(iter(sorted(folder.rglob(name))), None)


def prepare(work: Work, folder: Path) -> Path:
    """Write rows and metrics as the script of a task reads them, and return the folder to run in."""
    own = folder / f"examples-{work.name}"
    own.mkdir(parents=True, exist_ok=True)
    for name, source in METRICS.items():
        (own / name).mkdir(exist_ok=True)
        (own / name / f"{name}.py").write_text(source)
    for part in ("few", "validation"):
        rows = [json.loads(line) for line in work.rows(part).read_text(encoding="utf-8").splitlines()]
        (own / f"{part}.json").write_text(converted(work, rows), encoding="utf-8")
    return own


def converted(work: Work, rows: list[dict]) -> str:
    """Return the rows as a file for the script of their task."""
    if work.name == "squad":
        return json.dumps({"version": "v2.0", "data": rows})
    if work.name == "medquad":
        rows = [{"text": f"Input: {row['prompt']}\nOutput: {row['completion']}"} for row in rows]
    else:
        rows = [{"text": row["text"], "label": row["label"]} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in rows)


def words(work: Work, script: Path, files: Path, out: Path, batch: int, steps: int, device: str) -> list[str]:
    """Return the command line of a script."""
    line = [sys.executable, str(script), "--model_name_or_path", str(work.model)]
    line += ["--train_file", str(files / "few.json"), "--validation_file", str(files / "validation.json")]
    line += ["--do_train", "--do_eval", "--output_dir", str(out), "--seed", "42"]
    line += ["--per_device_train_batch_size", str(batch), "--per_device_eval_batch_size", "32"]
    line += ["--learning_rate", str(work.shape.learning_rate), "--num_train_epochs", "2"]
    line += ["--save_strategy", "steps", "--save_steps", str(2 * steps)]
    line += ["--bf16"] if device == "cuda" else ["--use_cpu"]
    length = str(work.max_length)
    own = {
        "imdb": ["--max_seq_length", length, "--text_column_names", "text", "--label_column_name", "label"],
        "squad": ["--max_seq_length", length, "--doc_stride", str(min(128, work.max_length // 3))],
        "medquad": ["--block_size", length],
    }
    return line + own[work.name] + (["--version_2_with_negative"] if work.name == "squad" else [])


def figures(out: Path) -> dict[str, float]:
    """Return what a script has written about its evaluation; its time is without post-processing."""
    found = json.loads((out / "all_results.json").read_text())
    names = {"eval_accuracy": "accuracy", "eval_exact": "exact_match", "eval_f1": "f1", "eval_loss": "loss"}
    own = {name: found[key] for key, name in names.items() if key in found}
    if found.get("eval_samples") and found.get("eval_runtime"):
        own["seconds_per_example"] = found["eval_runtime"] / found["eval_samples"]
    return own
