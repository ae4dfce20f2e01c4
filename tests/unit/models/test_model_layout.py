"""The modules of a model by name: against those that transformers builds."""

from typing import Any

import pytest
import torch
from test_model_size import ONLY_IN_FILES, SHAPES, VOCAB, built, config_of, scratch
from transformers import AutoConfig, Conv1D

from finelaunch.models.layout import Layout, Module, _layout, model_layout
from finelaunch.models.shape import HEADLESS, HEADS, _settled
from finelaunch.models.size import ModelSize, model_size

KINDS = {torch.nn.Linear: "linear", Conv1D: "conv1d", torch.nn.Embedding: "embedding", torch.nn.Conv1d: "convolution"}


def assert_same(layout: Layout, model: Any) -> None:
    shapes = {f"{module.name}.{name}": s for module in layout.modules for name, s in module.parameters.items()}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    kinds = {name: KINDS[type(module)] for name, module in model.named_modules() if type(module) in KINDS}
    assert {module.name: module.kind for module in layout.modules if module.kind in KINDS.values()} == kinds
    for one in layout.linears:
        module = model.get_submodule(one.name)
        is_turned = isinstance(module, Conv1D)
        assert tuple(module.weight.shape) == ((one.num_in, one.num_out) if is_turned else (one.num_out, one.num_in))
    assert layout.base == model.base_model_prefix
    output = model.get_output_embeddings() if layout.output else None
    assert output is (model.get_submodule(layout.output) if layout.output else None)
    in_layers = {module.layer for module in layout.modules if module.layer is not None}
    assert in_layers == set(range(layout.num_layers))
    assert all(f".{module.layer}." in module.name for module in layout.modules if module.layer is not None)


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize(
    ("model_type", "number"), [(kind, n) for kind, given in SHAPES.items() for n in range(len(given))]
)
def test_modules_are_those_that_transformers_builds(model_type: str, number: int, task: str) -> None:
    shape = SHAPES[model_type][number]
    section = scratch(model_type, shape)
    layout, size = model_layout(section, task, 3), model_size(section, task, 3)
    if (model_type, task) in HEADLESS:
        assert layout == size == f"transformers has no CausalLM head for {model_type}"
        return
    assert isinstance(layout, Layout)
    assert isinstance(size, ModelSize)
    assert_same(layout, built(config_of(model_type, shape, vocab_size=VOCAB), task, 3))
    assert sum(module.num_parameters for module in layout.modules) == size.num_parameters


@pytest.mark.parametrize("given", ONLY_IN_FILES, ids=lambda given: given["model_type"])
@pytest.mark.parametrize("task", ["question_answering", "text_classification"])
def test_keys_of_checkpoints(given: dict[str, Any], task: str) -> None:
    config = AutoConfig.for_model(**given)
    assert_same(_layout(_settled(given["model_type"], given), task, 2), built(config, task, 2))


def test_a_module_counts_its_parameters() -> None:
    module = Module("a", "linear", {"weight": (3, 4), "bias": (3,)}, 4, 3)
    assert (module.num_parameters, module.is_linear) == (15, True)
    assert not Module("b", "norm", {"weight": (3,)}).is_linear
