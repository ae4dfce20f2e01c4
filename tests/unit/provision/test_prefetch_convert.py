"""Pickled weights made into safetensors: every name with its bits, nothing that is code, nothing by halves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finelaunch.errors import BadInput
from finelaunch.provision.convert import to_safetensors

BIN, SAFE = "pytorch_model.bin", "model.safetensors"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / "models--tiny--bert" / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    return folder


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape), name
        assert torch.equal(bits(tensor), bits(after[name])), name


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_shared_sliced_transposed_and_odd_tensors_keep_their_bits(snapshot: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    before = {
        "embedding": base,
        "decoder": base,
        "slice": base[1:3],
        "transposed": base.t(),
        "half": torch.randn(3).to(torch.bfloat16),
        "whole": torch.arange(5),
        "flag": torch.tensor(True),
        "empty": torch.empty(0, 4),
        "odd": torch.tensor([float("nan"), -0.0, float("inf")]),
    }
    torch.save(before, snapshot / BIN, _use_new_zipfile_serialization=zipped)
    (snapshot.parents[1] / ".no_exist" / snapshot.name).mkdir(parents=True)
    (snapshot.parents[1] / ".no_exist" / snapshot.name / SAFE).touch()
    assert to_safetensors(snapshot, [BIN]) == [SAFE]
    assert_same(before, load_file(snapshot / SAFE))
    assert not (snapshot.parents[1] / ".no_exist" / snapshot.name / SAFE).exists()
    assert sorted(path.name for path in snapshot.iterdir()) == [SAFE, BIN]
    written = (snapshot / SAFE).stat()
    assert to_safetensors(snapshot, [BIN]) == [SAFE]
    assert (snapshot / SAFE).stat().st_mtime_ns == written.st_mtime_ns
    assert written.st_mode == (snapshot / BIN).stat().st_mode


def test_parts_and_their_index_go_together(snapshot: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for number, name in enumerate(names):
        torch.save({f"weight.{number}": torch.full((3,), number)}, snapshot / name)
    index = {
        "metadata": {"total_size": 48},
        "weight_map": {f"weight.{number}": name for number, name in enumerate(names)},
    }
    (snapshot / f"{BIN}.index.json").write_text(json.dumps(index))
    made = to_safetensors(snapshot, [f"{BIN}.index.json", *names])
    assert made[-1] == f"{SAFE}.index.json"
    written = json.loads((snapshot / made[-1]).read_text())
    assert written["metadata"] == {"total_size": 48}
    for number in range(2):
        file = written["weight_map"][f"weight.{number}"]
        assert file == f"model-{number + 1:05d}-of-00002.safetensors"
        assert load_file(snapshot / file)[f"weight.{number}"].tolist() == [number] * 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cposix\nmkdir\n(VRAN\ntR.", "cannot be read as weights alone"),
        (b"", "cannot be read as weights alone"),
        (b"PK\x03\x04 and then nothing", "cannot be read as weights alone"),
        ([1, 2], "holds something other than dense tensors by name"),
        ({"step": 3}, "holds something other than dense tensors by name"),
        ({"sparse": torch.eye(3).to_sparse()}, "holds something other than dense tensors by name"),
    ],
    ids=["code", "empty", "cut off", "list", "number", "sparse"],
)
def test_what_is_not_weights_is_refused_and_leaves_nothing(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, content: object, said: str
) -> None:
    monkeypatch.chdir(snapshot.parent)
    if isinstance(content, bytes):
        (snapshot / BIN).write_bytes(content)
    else:
        torch.save(content, snapshot / BIN)
    with pytest.raises(BadInput, match=f"pytorch_model.bin: model.name_or_path: {said}"):
        to_safetensors(snapshot, [BIN])
    assert [path.name for path in snapshot.iterdir()] == [BIN]
    assert not (snapshot.parent / "RAN").exists()


def test_an_index_that_is_none_is_refused(snapshot: Path) -> None:
    (snapshot / f"{BIN}.index.json").write_text("{}")
    with pytest.raises(BadInput, match="is no index of weights"):
        to_safetensors(snapshot, [f"{BIN}.index.json"])
