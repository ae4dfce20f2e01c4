"""What launchers leave in the environment, the profile it comes to, and what is refused."""

import pytest

from finelaunch.errors import BadInput
from finelaunch.launch.place import place
from finelaunch.launch.request import check_arithmetic, choose, read_request
from finelaunch.methods.full import FullSection
from finelaunch.recipe.schema import Recipe
from finelaunch.run.ranks import Ranks
from finelaunch.section.document import Document
from finelaunch.training.section import TrainingSection

RANKS = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29999"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no"}
FSDP2 = {**RANKS, **ACCELERATE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ZERO2 = {**RANKS, **ACCELERATE, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


@pytest.mark.parametrize(
    ("on", "environment", "said"),
    [
        (None, {"WORLD_SIZE": "2", "RANK": "0"}, "environment: LOCAL_RANK: is missing"),
        (None, {**RANKS, "MASTER_PORT": ""}, "MASTER_PORT are not set"),
        (None, {**RANKS, "RANK": "2"}, "rank 2 of 2"),
        ("cpu", RANKS, "launch.num_processes_per_node: cpu is 1 process, and 2 were started"),
        ("cpu_ddp", {}, "cpu_ddp is 2 processes, and this is one alone; use finelaunch launch"),
        ("ddp", {}, "ddp is a process for each GPU, and this is one alone"),
        (
            "cpu_zero3",
            ZERO2,
            "launch.accelerate_config: the profile says zero3, and this process was launched with zero2",
        ),
        ("cpu_ddp", {**RANKS, "WORLD_SIZE": "3"}, "cpu_ddp is 2 processes, and 3 were started"),
        (
            "cpu",
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "the profile says fp32, and this process was launched with bf16",
        ),
        (None, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "accelerate config: launch.precision: fp16 is for GPUs"),
        (None, {"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision: fp8 is not offered"),
        # What accelerate silently runs otherwise.
        (None, {**ACCELERATE, "MASTER_PORT": "29500"}, "distributed_type: accelerate starts one process for MULTI_CPU"),
        (None, {**ZERO2, "ACCELERATE_USE_CPU": "true"}, "use_cpu: accelerate ignores it or runs plain DDP instead"),
        (
            None,
            {**RANKS, **ACCELERATE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
            "has no FSDP without a GPU",
        ),
        (None, {**RANKS, **ACCELERATE, "ACCELERATE_USE_FSDP": "true"}, "fsdp_version: FSDP1 is not offered"),
        (
            None,
            {**ACCELERATE, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"},
            "accelerate_dynamo_backend: INDUCTOR has no effect",
        ),
        (None, {**RANKS, **ACCELERATE, "ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is not offered"),
        (
            None,
            {**FSDP2, "FSDP_RESHARD_AFTER_FORWARD": "false"},
            "fsdp_reshard_after_forward: false has no effect here",
        ),
        (None, {**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use launch.activation_checkpointing=true"),
        ("gpu", {**ACCELERATE, "ACCELERATE_USE_CPU": "true"}, "launch.device: the profile says cuda"),
        (None, {**ZERO2, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "zero_stage: 0 cuts nothing"),
        (None, {**ZERO2, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "deepspeed_config_file: a second file"),
        (
            None,
            {**ZERO2, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "gradient_accumulation_steps: is 4, and the run",
        ),
        (None, {**ZERO2, "ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "gradient_clipping: is 0.5, and the run has 1"),
        (
            None,
            {**ZERO2, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"},
            "offload_param_device: nvme is not offered",
        ),
        ("cpu_zero2", {**ZERO2, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "launched with optimizer"),
    ],
)
def test_what_launcher_and_profile_disagree_on_is_refused(on, environment, said):
    with pytest.raises(BadInput) as caught:
        started(on, environment)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def started(on, environment, device="cpu", **overrides):
    ranks = Ranks.from_environment(environment)
    machine = choose(on, Document(dict(overrides)), ranks, read_request(environment, ranks), device)
    training = TrainingSection(global_batch_size=8, learning_rate=1e-3)
    recipe = Recipe.model_construct(training=training, method=FullSection())
    placement = place(recipe, machine.profile, machine.document)
    check_arithmetic(placement, environment, 1.0)
    return machine, placement


@pytest.mark.parametrize(
    ("environment", "device", "name", "engine"),
    [
        ({}, "cpu", "cpu", "single"),
        ({}, "cuda", "gpu", "single"),
        (ACCELERATE, "cuda", "gpu", "single"),
        (RANKS, "cpu", "cpu_ddp", "ddp"),
        ({**RANKS, **ACCELERATE}, "cuda", "ddp", "ddp"),
        (ZERO2, "cpu", "cpu_zero2", "zero2"),
        ({**ZERO2, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "cuda", "zero3", "zero3"),
        ({**RANKS, **ACCELERATE, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "cuda", "fsdp2", "fsdp2"),
    ],
)
def test_a_launcher_chooses_the_engine_where_nobody_names_a_profile(environment, device, name, engine):
    machine, placement = started(None, environment, device)
    assert (machine.name, placement.engine.name) == (name, engine)
    assert placement.num_processes == int(environment.get("WORLD_SIZE", 1))
    assert machine.why


def test_a_named_profile_takes_the_number_of_processes_that_are_there():
    machine, placement = started("zero2", {**RANKS, "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "cuda")
    assert (machine.profile.num_nodes, machine.profile.num_processes_per_node) == (2, 2)
    assert placement.arithmetic() == "global batch 8 = 2 per device x 4 processes x 1 accumulated"
    assert not machine.why


def test_what_accelerate_was_asked_for_is_adopted_where_nobody_names_a_profile():
    offloaded = {**ZERO2, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu", "ACCELERATE_MIXED_PRECISION": "fp16"}
    machine, placement = started(None, offloaded, "cuda")
    assert placement.engine.deepspeed()["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert machine.profile.precision == "fp16"
    with pytest.raises(BadInput, match="the profile says fp32, and this process was launched with fp16"):
        started(None, offloaded, "cuda", precision="fp32")
