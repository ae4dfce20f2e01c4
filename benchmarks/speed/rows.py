"""The rows and the models of the contestants, the same files for all of them.

A task has two sets of training rows: ``many``, for what goes before the first step, and ``few``, that one epoch of a
measured training goes through, so that every contestant trains on each of them once, whatever its order.
"""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 7
GPT2 = {"n_positions": 512, "n_embd": 256, "n_layer": 4, "n_head": 4}
AUTO_CLASSES = {
    "imdb": "AutoModelForSequenceClassification",
    "squad": "AutoModelForQuestionAnswering",
    "medquad": "AutoModelForCausalLM",
}
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
DROPOUTS += ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")
DROPOUTS += ("dropout", "attention_dropout", "seq_classif_dropout", "qa_dropout")


@dataclass(frozen=True)
class Shape:
    """What a task trains on.

    Args:
        script: The plain and the tuned script.
        task: The recipe's ``task`` section.
        max_length: Tokens of a row.
        learning_rate: The peak.
        quality: Figures shown beside the speed.
        example: The transformers example script for it.
        files: What it needs of the data folder.
    """

    script: str
    task: dict[str, Any]
    max_length: int
    learning_rate: float
    quality: tuple[str, ...]
    example: str
    files: tuple[str, ...]


SHAPES = {
    "imdb": Shape(
        "classification.py",
        {"name": "text_classification", "label_names": ["negative", "positive"]},
        256,
        1e-4,
        ("accuracy", "loss"),
        "run_classification.py",
        ("imdb/train.parquet", "imdb/test.parquet"),
    ),
    "squad": Shape(
        "question_answering.py",
        {"name": "question_answering", "stride": 128},
        384,
        2e-4,
        ("exact_match", "f1"),
        "run_qa.py",
        ("squad_v2/train.json", "squad_v2/dev.json"),
    ),
    "medquad": Shape(
        "causal_lm.py",
        {"name": "causal_lm", "shape": "plain"},
        256,
        1e-3,
        ("loss",),
        "run_clm.py",
        ("medquad/medquad.jsonl",),
    ),
}


@dataclass(frozen=True)
class Work:
    """What one task of a benchmark is made of.

    Args:
        name: Of the task.
        folder: Where its files lie.
        batch: Rows of a step.
        max_length: Tokens of a row.
    """

    name: str
    folder: Path
    batch: int
    max_length: int

    @property
    def shape(self) -> Shape:
        return SHAPES[self.name]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def model_without_dropout(self) -> Path:
        return self.folder / "model-no-dropout"

    def rows(self, name: str) -> Path:
        """Return the file of ``many``, ``few``, ``validation`` or ``two``."""
        return self.folder / f"{name}.jsonl"


def write_work(
    name: str,
    folder: Path,
    data: Path,
    base: str,
    batch: int,
    steps: int,
    num_many: int,
    num_validation: int,
    length: int | None,
    config: Mapping[str, Any] | None = None,
) -> Work:
    """Write the rows and the model of a task, and return where they are.

    Args:
        name: Of the task.
        folder: Where to write.
        data: The folder with imdb/, squad_v2/ and medquad/.
        base: Folder of the pretrained encoder.
        batch: Rows of a step.
        steps: Steps of an epoch of the few rows.
        num_many: Training rows for what goes before the first step.
        num_validation: Rows to evaluate.
        length: Most tokens of a row; None: as the task has it.
        config: Of a model of random weights instead.
    """
    work = Work(name, folder, batch, length or SHAPES[name].max_length)
    folder.mkdir(parents=True)
    train, validation = {"imdb": _imdb, "squad": _squad, "medquad": _medquad}[name](data)
    tokenizer = _write_model(work, base, train, config)
    fits = _fits(work, tokenizer)
    train = [(row, size) for row in train[: 2 * num_many] if (size := fits(row))]
    few, places = [], batch * steps
    for row, size in train:
        if size <= places:
            few.append(row)
            places -= size
    if places:
        raise SystemExit(f"{name}: {data} has too few rows for {steps} steps of {batch}")
    chosen = {
        "many": [row for row, _ in train[:num_many]],
        "few": few,
        "validation": [row for row in validation if fits(row)][:num_validation],
    }
    chosen["two"] = chosen["validation"][:2]
    for part, rows in chosen.items():
        work.rows(part).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return work


def _fits(work: Work, tokenizer):
    """Return a function that gives the features of a row, or 0 where contestants would treat it differently."""
    if work.name == "imdb":
        return lambda row: 1
    longest = work.max_length

    def windows(row) -> int:
        if len(tokenizer(row["question"].strip())["input_ids"]) > min(64, longest // 4):
            return 0
        pair = tokenizer(
            row["question"].strip(),
            row["context"],
            truncation="only_second",
            max_length=longest,
            stride=min(128, longest // 3),
            return_overflowing_tokens=True,
        )
        return len(pair["input_ids"])

    def has_answer(row) -> int:
        return int(len(tokenizer(f"Input: {row['prompt']}\nOutput:")["input_ids"]) < longest // 2)

    return windows if work.name == "squad" else has_answer


def _shuffled(rows: list) -> list:
    random.Random(SEED).shuffle(rows)
    return rows


def _imdb(data: Path) -> tuple[list, list]:
    import pyarrow.parquet as parquet

    found = []
    for split in ("train", "test"):
        rows = parquet.read_table(data / "imdb" / f"{split}.parquet", columns=["text", "label"]).to_pylist()
        unique = {row["text"]: {"id": f"{split}-{index}", **row} for index, row in enumerate(rows)}
        found.append(_shuffled(list(unique.values())))
    return found[0], found[1]


def _squad(data: Path) -> tuple[list, list]:
    found = []
    for split in ("train", "dev"):
        articles = json.loads((data / "squad_v2" / f"{split}.json").read_text(encoding="utf-8"))["data"]
        rows = [
            {
                "id": qa["id"],
                "title": article["title"],
                "context": paragraph["context"],
                "question": qa["question"],
                "answers": {
                    "text": [answer["text"] for answer in qa["answers"]],
                    "answer_start": [answer["answer_start"] for answer in qa["answers"]],
                },
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]
        ]
        found.append(_shuffled(rows))
    return found[0], found[1]


def _medquad(data: Path) -> tuple[list, list]:
    rows = []
    for line in (data / "medquad" / "medquad.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt, completion = (" ".join((row[key] or "").split()) for key in ("question", "answer"))
        if prompt and completion:
            rows.append({"id": row["id"], "prompt": prompt, "completion": completion})
    _shuffled(rows)
    tenth = len(rows) // 10
    return rows[tenth:], rows[:tenth]


def _write_model(work: Work, base: str, rows: list, config: Mapping[str, Any] | None):
    """Save the model with its new head, once with and once without dropout, and return its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    auto = getattr(transformers, AUTO_CLASSES[work.name])
    labels = work.shape.task.get("label_names", [])
    words: dict[str, Any] = {}
    if labels:
        words = {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
    if work.name == "medquad":
        tokenizer = _new_tokenizer(row["prompt"] + " " + row["completion"] for row in rows[:2000])
        words = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
        config = config or {"model_type": "gpt2", "vocab_size": len(tokenizer), **GPT2}
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(base)
        tokenizer.model_max_length = work.max_length
    if config is None:
        model = auto.from_pretrained(base, dtype=torch.float32, **words)
    else:
        model = auto.from_config(transformers.AutoConfig.for_model(**config, **words))
        if config["model_type"] == "distilbert":
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model.save_pretrained(work.model)
    tokenizer.save_pretrained(work.model)
    shutil.copytree(work.model, work.model_without_dropout)
    written = json.loads((work.model / "config.json").read_text())
    quiet = {name: 0.0 for name in DROPOUTS if written.get(name)}
    (work.model_without_dropout / "config.json").write_text(json.dumps({**written, **quiet}))
    return tokenizer


def _new_tokenizer(texts):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=8000, special_tokens=["<|endoftext|>"], show_progress=False)
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, **end)
