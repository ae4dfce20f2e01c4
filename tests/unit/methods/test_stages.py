"""Parts of a model, stages of a training, and the rates and schedules that they are trained with."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler
from unit.methods.bases import CLASSES, SHAPES, SPANS, WORDS, copy_of, load, loss_of

from finelaunch.errors import BadInput
from finelaunch.methods import method_for
from finelaunch.methods.feature_extraction import FeatureExtractionSection
from finelaunch.methods.gradual_unfreezing import GradualUnfreezingSection, num_trained_parts
from finelaunch.methods.limits import ADAPTERS, PROMPTS, method_faults
from finelaunch.methods.lora import LoraSection
from finelaunch.methods.parts import parts_of
from finelaunch.methods.prompts import PrefixTuningSection, PromptTuningSection
from finelaunch.methods.qlora import QLoraSection
from finelaunch.training.stages import advance, held, in_groups

pytestmark = pytest.mark.filterwarnings("ignore")

PARTS = ["head", "layer 1", "layer 0", "embeddings"]
SCHEDULES = ["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "cosine_with_restarts"]
LOADED = [(name, WORDS) for name in ("gpt2", "llama")]
LOADED += [(name, kind) for name in SHAPES if (name, WORDS) not in LOADED for kind in (CLASSES, SPANS)]


@pytest.mark.parametrize(("model_type", "auto_class"), LOADED)
def test_every_parameter_is_in_exactly_one_part(model_type, auto_class, bases):
    loaded = load(bases(model_type), auto_class)
    parts = parts_of(loaded)
    names = [name for part in parts for name in part.parameters]
    assert sorted(names) == sorted(name for name, _ in loaded.model.named_parameters())
    by_name = {part.name: part.parameters for part in parts}
    if model_type == "albert":  # all its layers share their weights
        assert list(by_name) == ["head", "layer 0", "embeddings"]
    else:
        assert list(by_name) == PARTS
        assert len(by_name["layer 1"]) == len(by_name["layer 0"]) or model_type == "modernbert"
        assert all(".1." in name for name in by_name["layer 1"])
    words = [name for name, one in loaded.model.named_parameters() if one.shape[0] > 300]
    assert words
    assert set(words) - set(by_name["embeddings"]) <= {"lm_head.weight"}
    assert set(loaded.drawn) <= set(by_name["head"])


@given(st.integers(1, 60), st.data())
def test_stages_train_ever_more_parts_and_at_last_all(num_parts, data):
    num_stages = data.draw(st.integers(1, num_parts))
    counts = num_trained_parts(num_parts, num_stages)
    assert len(counts) == num_stages
    assert counts[-1] == num_parts
    assert num_stages == 1 or counts[0] == 1
    assert all(one < other for one, other in pairwise(counts))


def test_stages_end_evenly_and_the_last_one_with_the_training(bases):
    method = method_for(GradualUnfreezingSection())
    model = method.apply(load(bases("bert"), CLASSES))
    for num_steps in range(4, 60):
        stages = method.stages(model, num_steps)
        ends = [0, *(stage.end_step for stage in stages)]
        assert ends[-1] == num_steps
        lengths = [after - before for before, after in pairwise(ends)]
        assert min(lengths) >= 1
        assert max(lengths) - min(lengths) <= 1
    assert [stage.name for stage in stages] == ["head", "head to layer 1", "head to layer 0", "head to embeddings"]
    assert all(one.trained < other.trained for one, other in pairwise(stages))
    assert stages[-1].trained == {name for name, _ in model.named_parameters()}
    with pytest.raises(BadInput, match=r"method\.num_stages: 4 stages need at least 4 steps, and there are 3"):
        method.stages(model, 3)


def test_more_stages_than_parts_are_refused(bases):
    said = r"method\.num_stages: 5 is more than the 4 parts of the model: head, layer 1, layer 0, embeddings; at most 4"
    with pytest.raises(BadInput, match=said):
        method_for(GradualUnfreezingSection(num_stages=5)).apply(load(bases("bert"), CLASSES))
    method = method_for(GradualUnfreezingSection(num_stages=1))
    (stage,) = method.stages(method.apply(load(bases("bert"), CLASSES)), 1)
    assert stage.name == "head to embeddings"


def test_each_stage_trains_what_it_says_at_the_rate_of_its_part(bases):
    loaded = load(bases("bert"), CLASSES)
    method = method_for(GradualUnfreezingSection(learning_rate_decay=0.5))
    model, depths = method.apply(loaded), {}
    for depth, part in enumerate(parts_of(loaded)):
        depths |= dict.fromkeys(part.parameters, depth)
    for number, stage in enumerate(method.stages(model, 4)):
        before = copy_of(model)
        with held(model, stage):
            trained = [one for _, one in model.named_parameters() if one.requires_grad]
            groups = [{"params": [one], "weight_decay": 0.1 * (one.ndim > 1)} for one in trained]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            in_groups(optimizer, model, stage)
            model.train()
            loss_of(model).backward()
            for name, one in model.named_parameters():
                assert (one.grad is not None) == (depths[name] <= number), name
            of_groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
            for name, one in model.named_parameters():
                if one.requires_grad:
                    assert of_groups[id(one)]["lr"] == pytest.approx(0.1 * 0.5 ** depths[name])
                    assert of_groups[id(one)]["weight_decay"] == 0.1 * (one.ndim > 1)
            assert len(of_groups) == len(trained)
            optimizer.step()
        moved = {name for name, one in model.named_parameters() if not one.equal(before[name])}
        assert {depths[name] for name in moved} == set(range(number + 1))
        assert all(depths[name] <= number for name in moved)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("done", [0, 1, 7, 19])
def test_a_schedule_that_was_advanced_is_one_that_was_stepped(kind, done):
    def made():
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 0.07}])
        return optimizer, get_scheduler(kind, optimizer, num_warmup_steps=3, num_training_steps=20)

    (one, stepped), (other, advanced) = made(), made()
    for _ in range(done):
        one.step()
        stepped.step()
    advance(advanced, done)
    for _ in range(20 - done):
        assert [group["lr"] for group in one.param_groups] == [group["lr"] for group in other.param_groups]
        assert stepped.get_last_lr() == advanced.get_last_lr()
        for optimizer, scheduler in ((one, stepped), (other, advanced)):
            optimizer.step()
            scheduler.step()
    assert stepped.state_dict() == advanced.state_dict()


SECTIONS = {
    "gradual_unfreezing": GradualUnfreezingSection(),
    "feature_extraction": FeatureExtractionSection(),
    "lora": LoraSection(),
    "pissa": LoraSection(init_lora_weights="pissa"),
    "qlora": QLoraSection(),
    "prompt_tuning": PromptTuningSection(),
    "prefix_tuning": PrefixTuningSection(),
}
REFUSED = {
    **{(name, "fsdp2"): "fsdp2 was never seen to save and resume exactly" for name in ADAPTERS},
    ("pissa", "fsdp2"): "lora on fsdp2 was never seen",
    ("gradual_unfreezing", "zero3"): "prepares the model anew for every stage, and zero3 has cut it by then",
    ("gradual_unfreezing", "fsdp2"): "prepares the model anew for every stage, and fsdp2 has cut it by then",
    ("feature_extraction", "fsdp2"): "fsdp2 cuts trained and held weights alike",
    ("pissa", "zero3"): "init_lora_weights pissa takes whole weights apart, and zero3 has cut them",
    **{(name, "zero3"): f"{name} on zero3 was never seen to save and resume exactly" for name in PROMPTS},
}


@pytest.mark.parametrize("engine", ["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("name", SECTIONS)
def test_what_does_not_run_on_an_engine_is_refused_and_nothing_else(name, engine):
    found = list(method_faults(SECTIONS[name], engine, False, "none"))
    assert len(found) == ((name, engine) in REFUSED)
    for fault in found:
        assert fault.key == "accelerate_config"
        assert REFUSED[name, engine] in fault.what
        assert fault.remedy.startswith("use ")
        assert engine not in fault.remedy


@pytest.mark.parametrize("name", SECTIONS)
def test_what_does_not_go_with_a_profile_is_refused_under_its_key(name):
    checkpointed = list(method_faults(SECTIONS[name], "ddp", True, "none"))
    assert [fault.key for fault in checkpointed] == ["activation_checkpointing"] * (
        name in (*PROMPTS, "feature_extraction")
    )
    moved = list(method_faults(SECTIONS[name], "zero2", False, "optimizer"))
    assert [fault.key for fault in moved] == ["offload"] * (name == "qlora")
