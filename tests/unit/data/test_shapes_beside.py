"""Sources of different shapes in one split: each is read in its own, and what all share is settled for the run."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finelaunch.data.section import DataSection
from finelaunch.errors import BadInput
from finelaunch.preparation import read_splits
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.tasks import CausalLM, CausalLMSection
from finelaunch.tasks.conversations import TEXT

LM = CausalLM(CausalLMSection(name="causal_lm"))
ALPACA = [{"instruction": f"Do {n}.", "input": "" if n % 2 else f"with {n}", "output": f"Done {n}."} for n in range(6)]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"Ask {n}"}, {"from": "gpt", "value": f"Told {n}"}]} for n in range(6)
]
TEXTS = [{"text": f"It rained on day {n}."} for n in range(6)]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    if path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(train: Any, **others: Any) -> Any:
    values = {"train": train, "validation_fraction": 0.3, **others}
    return read_splits(build(DataSection, Document(values, name="recipe.yaml")), LM, Document({}, name="recipe.yaml"))


def test_each_source_has_its_own_shape(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "a.arrow", ALPACA),
        write(tmp_path, "s.parquet", SHAREGPT),
        write(tmp_path, "t.jsonl", TEXTS),
    ]
    done = read([{"path": path} for path in paths], test={"path": paths[1], "max_samples": 4})
    examples = done.examples["train"] + done.examples["validation"]
    roles = {source: {example["messages"][0]["role"] for example in examples if example["source"] == source}
             for source in "ast"}  # fmt: skip
    assert roles == {"a": {"user"}, "s": {"user"}, "t": {TEXT}}
    assert len(examples) == 18
    assert done.facts == {}
    assert {example["source"] for example in done.examples["validation"]} == set("ast")
    assert len(done.examples["test"]) == 4
    assert done.report["test"]["num_also_in_train"] <= 4
    assert pa.Table.from_pylist(examples).to_pylist() == examples


def test_texts_alone_settle_that_the_model_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path, "t.jsonl", TEXTS)
    done = read([{"path": path}, {"path": write(tmp_path, "u.jsonl", TEXTS[:2])}])
    assert done.facts == {"plain_text": True}
    assert sum(done.report[name]["num_repeated"] for name in ("train", "validation")) == 2
    both = [{example["messages"][0]["content"] for example in done.examples[name]} for name in ("train", "validation")]
    assert not both[0] & both[1]


def test_the_faults_of_all_sources_are_said_at_once(tmp_path: Path) -> None:
    bad = write(tmp_path, "bad.jsonl", [{"question": "q"}])
    gap = write(tmp_path, "gap.arrow", [*ALPACA, {"instruction": "q", "input": None, "output": " "}])
    with pytest.raises(BadInput) as raised:
        read([{"path": bad}, {"path": gap}], test={"path": bad})
    said = str(raised.value)
    assert f"{bad}: data.train[0].columns: the columns question are no shape" in said
    assert f"{gap}:row 7: output: is empty" in said
    assert f"{bad}: data.test.columns" in said
