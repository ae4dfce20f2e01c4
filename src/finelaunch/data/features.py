"""Encoded rows as columns in memory: an Arrow table seen through numpy, without a copy.

A column is either one number a row or one list of numbers a row. Tables are memory-mapped from the cache, so that a
large data set costs address space rather than memory, and a row is a few array slices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


class Features:
    """The encoded rows of one split.

    Args:
        table: Columns of numbers or of lists of numbers; ``input_ids`` is one of them.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._values: dict[str, np.ndarray] = {}
        self._offsets: dict[str, np.ndarray] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            if isinstance(column, pa.ChunkedArray):
                column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
            if pa.types.is_large_list(column.type):
                self._offsets[name] = column.offsets.to_numpy()
                column = column.values
            self._values[name] = column.to_numpy(zero_copy_only=False)

    @classmethod
    def from_lists(cls, columns: Mapping[str, Sequence[Any]]) -> "Features":
        """Build features from one list a column: of numbers, or of lists of numbers."""
        arrays = {}
        for name, rows in columns.items():
            nested = name == "input_ids" or (len(rows) > 0 and not np.isscalar(rows[0]))
            if not nested:
                arrays[name] = pa.array(np.asarray(rows))
                continue
            offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
            flat = np.concatenate([np.empty(0, np.int32), *(np.asarray(row, dtype=np.int32) for row in rows)])
            arrays[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat))
        return cls(pa.table(arrays))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return row ``index``: numbers as they are, lists as int32 ``[length]`` arrays that must not be written to."""
        return {name: self.at(name, index) for name in self._values}

    def at(self, name: str, index: int) -> Any:
        """Return the value of column ``name`` in row ``index``."""
        if name in self._offsets:
            offsets = self._offsets[name]
            return self._values[name][offsets[index] : offsets[index + 1]]
        return self._values[name][index]

    def column(self, name: str) -> np.ndarray:
        """Return a column of numbers as an array ``[rows]``."""
        return self._values[name]

    def rows(self, ids: np.ndarray, **columns: np.ndarray) -> "Features":
        """Return the features of the rows ``ids``, with ``columns`` in place of those of the same names."""
        table = self.table.take(pa.array(ids))
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        return Features(table)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each row, int64 ``[rows]``."""
        return np.diff(self._offsets["input_ids"])
