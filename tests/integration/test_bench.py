"""`make bench` as a whole, on the bundled questions with a tiny encoder: real processes of all contestants."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "src" / "finelaunch" / "data" / "samples" / "squad_v2"

pytestmark = pytest.mark.integration

STAND_IN = """
import json
from dataclasses import dataclass

import evaluate
from datasets import load_dataset
from transformers import (
    AutoModelForQuestionAnswering, AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, default_data_collator
)


@dataclass
class Given:
    model_name_or_path: str
    train_file: str
    validation_file: str
    max_seq_length: int = 384
    doc_stride: int = 128
    version_2_with_negative: bool = False


given, arguments = HfArgumentParser((Given, TrainingArguments)).parse_args_into_dataclasses()
raw = load_dataset("json", data_files={"train": given.train_file, "validation": given.validation_file}, field="data")
tokenizer = AutoTokenizer.from_pretrained(given.model_name_or_path)


def encode(rows):
    room = {"max_length": given.max_seq_length, "padding": "max_length", "truncation": "only_second"}
    encoded = tokenizer(rows["question"], rows["context"], **room)
    nowhere = [0] * len(rows["question"])
    return {**encoded, "start_positions": nowhere, "end_positions": nowhere}


metric = evaluate.load("squad_v2")
trainer = Trainer(
    AutoModelForQuestionAnswering.from_pretrained(given.model_name_or_path),
    arguments,
    train_dataset=raw["train"].map(encode, batched=True),
    eval_dataset=raw["validation"].map(encode, batched=True),
    data_collator=default_data_collator,
)
trainer.train()
found = trainer.evaluate()
answers = [{"id": row["id"], "prediction_text": "", "no_answer_probability": 0.0} for row in raw["validation"]]
golds = [{"id": row["id"], "answers": row["answers"]} for row in raw["validation"]]
figures = metric.compute(predictions=answers, references=golds)
found |= {f"eval_{name}": value for name, value in figures.items()} | {"eval_samples": len(answers)}
with open(f"{arguments.output_dir}/all_results.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """Return a folder with a tiny BERT and its tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    texts = json.loads((SAMPLES / "train.json").read_text(encoding="utf-8"))["data"]
    contexts = [paragraph["context"] for article in texts for paragraph in article["paragraphs"]]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = sorted({character for text in contexts for character in text.lower() if not character.isspace()})
    vocabulary = [*special, *characters, *(f"##{character}" for character in characters)]
    words = {word.strip(".,;:()\"'").lower() for text in contexts for word in text.split()}
    vocabulary += sorted({word for word in words if word.isalpha() and len(word) > 1})
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def test_the_whole_benchmark_writes_its_page(tmp_path, encoder):
    data = tmp_path / "data" / "squad_v2"
    data.mkdir(parents=True)
    for source, target in (("train", "train"), ("test", "dev")):
        (data / f"{target}.json").write_bytes((SAMPLES / f"{source}.json").read_bytes())
    scripts = tmp_path / "scripts" / "question-answering"
    scripts.mkdir(parents=True)
    (scripts / "run_qa.py").write_text(STAND_IN)
    page = tmp_path / "page.md"
    page.write_text("# Speed\n<!-- speed-squad -->\nto be replaced\n<!-- end of speed-squad -->\nthe end\n")
    sizes = "--repetitions 1 --starts 0 --steps 4 --batch 4 --rows 24 --evaluate 8 --max-length 128 --check-steps 5"
    line = [sys.executable, str(ROOT / "benchmarks" / "speed" / "bench.py"), "--data", str(tmp_path / "data")]
    line += ["--tasks", "squad", *sizes.split(), "--threads", "1", "--base", str(encoder), "--page", str(page)]
    line += ["--examples", str(tmp_path / "scripts"), "--work", str(tmp_path / "work")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = page.read_text()
    assert written.endswith("the end\n")
    assert "to be replaced" not in written
    assert "**a quick run**" in written
    assert "squad: same work: losses differ by" in done.stdout
    found = table_rows(written)
    rows = {cells[0]: cells[1:] for cells in found}
    assert rows["measured"][:4] == ["ours", "plain", "tuned", "example"]
    samples = rows["training, samples/s"]
    assert all(float(cell.replace(",", "")) > 0 for cell in samples[:4])
    assert "-" not in samples[4:]
    assert rows["preprocessing, cold, s"][3] == "-"
    assert float(rows["checkpoint, MB"][0]) > 0
    assert all(0 <= float(cell) <= 100 for cell in rows["exact_match after it"][:4])
    floors = found[found.index(["floor", "seen", "verdict"]) + 2 :]
    assert len(floors) == 6
    assert {cells[2].partition(":")[0] for cells in floors} <= {"reached", "missed", "noise", "not measured"}
    work = tmp_path / "work"
    assert len((work / "squad" / "validation.jsonl").read_text().splitlines()) == 8
    assert not list(work.rglob("checkpoint-*"))


def table_rows(page: str) -> list[list[str]]:
    """Return the cells of every line of a table."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
