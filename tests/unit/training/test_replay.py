"""What a failed step leaves: random states and weights come back bit for bit, and no file gives a traceback."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.errors import BadInput
from finelaunch.run.directory import RunDirectory
from finelaunch.run.ranks import ALONE
from finelaunch.training.recorder import Forward, as_json, keep_weights, random_states, restore_random_states
from finelaunch.training.replay import KEYS, Recorded, _load_weights, number, read_record


def draws():
    """Draw from every generator; a Gaussian too, of which python and numpy keep a second one."""
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]


@given(st.integers(0, 2**32 - 1), st.integers(0, 700))
def test_random_states_come_back_through_json(seed, used):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for _ in range(used % 7):
        draws()
    kept = json.loads(json.dumps(as_json(random_states("cpu")), allow_nan=False))
    first = draws()
    draws()
    restore_random_states(kept, "cpu")
    assert draws() == first


def test_taking_the_states_changes_none_of_them():
    torch.manual_seed(3)
    first = torch.rand(4)
    torch.manual_seed(3)
    random_states("cpu")
    assert torch.equal(torch.rand(4), first)


def test_a_loss_keeps_every_bit():
    loss = torch.tensor(0.1) * 3
    said = Forward(random_states("cpu"), torch.tensor(17), loss).facts()
    assert torch.tensor(float(said["loss"])) == loss
    assert said["num_items"] == 17.0
    assert Forward(random_states("cpu"), 1, torch.tensor(float("-inf"))).facts()["loss"] == "-inf"
    assert number(float("nan")) == "nan"
    assert number(0.25) == 0.25


def trainer_of(model):
    accelerator = SimpleNamespace(get_state_dict=lambda wrapped: wrapped.state_dict())
    return SimpleNamespace(accelerator=accelerator, model=model, model_wrapped=model)


def tied(seed):
    """Return a small language model whose head and embeddings are one tensor."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=1))


def test_tied_weights_and_views_are_kept_once_and_come_back(tmp_path):
    run, model = RunDirectory(tmp_path), tied(0)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.bias = torch.nn.Parameter(torch.arange(48.0)[::2])
    kept = keep_weights(run, 3, trainer_of(model), ALONE)
    assert (kept["file"], kept["why"]) == ("step-3.safetensors", "")
    assert kept["aliases"] == {"lm_head.weight": "transformer.wte.weight"}
    assert [path.name for path in run.replay.iterdir()] == ["step-3.safetensors"]
    other = tied(1)
    facts = {"weights": kept, "step": 3, "checkpoint": None}
    used, inexact = _load_weights(other, Recorded(run.replay / "step-3-rank-0.json", facts))
    assert used.endswith("step-3.safetensors")
    assert inexact == []
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in other.state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path):
    run = RunDirectory(tmp_path)
    kept = keep_weights(run, 1, trainer_of(torch.nn.Linear(2, 2)), ALONE)
    with pytest.raises(BadInput, match="is of another model"):
        _load_weights(
            tied(0), Recorded(run.replay / "step-1-rank-0.json", {"weights": kept, "step": 1, "checkpoint": None})
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(JSON.map(json.dumps) | st.text(max_size=40))
def test_no_other_file_is_taken(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "file.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(BadInput, match="--replay"):
        read_record(path)


def test_a_folder_and_bytes_are_not_taken_either(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "bytes", tmp_path / "none"):
        with pytest.raises(BadInput, match="--replay"):
            read_record(path)
