"""A saved model is whole, or it is refused."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from finelaunch.errors import FinelaunchError
from finelaunch.evaluation.finished import check_weights

SHAPES = {"layer.weight": (4, 3), "layer.bias": (4,)}


def written(folder: Path, **arrays: np.ndarray) -> Path:
    whole = {name: np.ones(shape, dtype=np.float32) for name, shape in SHAPES.items()}
    kept = {name: array for name, array in {**whole, **arrays}.items() if array is not None}
    save_file(dict(list(kept.items())[:1]), folder / "model-00001-of-00002.safetensors")
    save_file(dict(list(kept.items())[1:]), folder / "model-00002-of-00002.safetensors")
    return folder


def test_whole_weights_pass_in_one_file_or_several(tmp_path: Path) -> None:
    check_weights(written(tmp_path), SHAPES)


@pytest.mark.parametrize(
    ("name", "array", "found"),
    [
        ("layer.weight", None, "layer.weight is missing, not (4, 3)"),
        ("layer.weight", np.zeros((0,), dtype=np.float32), "layer.weight is empty, not (4, 3)"),
        ("layer.bias", np.zeros((2,), dtype=np.float32), "layer.bias is (2,), not (4,)"),
        ("other.buffer", np.zeros((0, 3), dtype=np.float32), "other.buffer is empty"),
    ],
)
def test_missing_empty_and_cut_tensors_are_refused(tmp_path: Path, name: str, array: np.ndarray, found: str) -> None:
    with pytest.raises(FinelaunchError) as caught:
        check_weights(written(tmp_path, **{name: array}), SHAPES)
    assert found in str(caught.value)
    assert "the checkpoints are kept" in str(caught.value)
