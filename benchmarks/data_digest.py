"""Prints a digest of rows that does not depend on file format or order: python benchmarks/data_digest.py FILE …"""

import hashlib
import json
import sys
from pathlib import Path

import pyarrow.parquet as pq


def rows(path):
    if path.endswith(".parquet"):
        for row in pq.read_table(path).to_pylist():
            yield [row["id"], row["label"], row["text"]]
    elif path.endswith(".jsonl"):
        for row in map(json.loads, Path(path).read_bytes().splitlines()):
            yield [row["id"], row["question"], row["answer"]]
    else:
        for article in json.loads(Path(path).read_text(encoding="utf-8"))["data"]:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    answers = [[answer["answer_start"], answer["text"]] for answer in qa["answers"]]
                    yield [qa["id"], qa["question"], paragraph["context"], answers]


for path in sys.argv[1:]:
    lines = sorted(json.dumps(row) for row in rows(path))
    print(hashlib.sha256("\n".join(lines).encode()).hexdigest(), len(lines), path)
