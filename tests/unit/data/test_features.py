"""Encoded rows come back as they were put in, whatever way the table is stored."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.data.cache import read_table, write_table
from finelaunch.data.features import Features

numbers = st.integers(-(2**31), 2**31 - 1)
tables = st.lists(st.tuples(st.lists(numbers, max_size=6), numbers, st.floats(width=32, allow_nan=False)), min_size=1)


def built(rows: list[Any]) -> Features:
    lists, whole, real = zip(*rows, strict=True)
    return Features.from_lists({"input_ids": list(lists), "labels": list(whole), "score": list(real)})


def check(features: Features, rows: list[Any]) -> None:
    assert len(features) == len(rows)
    assert features.lengths.tolist() == [len(row[0]) for row in rows]
    for index, (ids, label, score) in enumerate(rows):
        found = features[index]
        assert found["input_ids"].dtype == np.int32
        assert found["input_ids"].tolist() == ids == features.at("input_ids", index).tolist()
        assert (found["labels"], found["score"]) == (label, score)
    assert features.column("labels").tolist() == [row[1] for row in rows]


@given(tables)
@settings(deadline=None)
def test_rows_come_back(rows: list[Any]) -> None:
    check(built(rows), rows)


@given(tables, tables, st.integers(0, 5))
@settings(deadline=None)
def test_pieces_and_slices_are_read_as_one(one: list[Any], other: list[Any], skipped: int) -> None:
    joined = pa.concat_tables([built(one).table, built(other).table])
    check(Features(joined), one + other)
    check(Features(joined.slice(skipped)), (one + other)[skipped:])


def test_rows_come_back_from_a_mapped_file(tmp_path: Path) -> None:
    rows = [([1, 2, 3], 4, 0.5), ([], 5, 1.0), ([6], 7, 2.0)]
    write_table(built(rows).table, tmp_path / "f.arrow")
    check(Features(read_table(tmp_path / "f.arrow")), rows)


def test_no_rows_have_no_lengths() -> None:
    features = Features.from_lists({"input_ids": [], "labels": []})
    assert len(features) == 0
    assert features.lengths.tolist() == []
