"""Accelerate configs as accelerate and we read them, and those that are refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.utils import DistributedType

from finelaunch.engines import NAMES, Engine, load_engine
from finelaunch.errors import EXIT_BAD_INPUT, BadInput
from finelaunch.section.lookup import names, shipped

TYPES = {"single": DistributedType.NO, "ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP}
STATED_ELSEWHERE = ("mixed_precision", "precision", "fp16", "bf16", "batch", "clipping", "accumulation", "offload")
MULTI_GPU = "distributed_type: MULTI_GPU\nnum_processes: 2\n"
DEEPSPEED = "distributed_type: DEEPSPEED\nnum_processes: 2\n"
FSDP = "distributed_type: FSDP\nnum_processes: 2\n"


def test_there_are_six_engines() -> None:
    assert tuple(sorted(NAMES)) == tuple(names("accelerate_configs"))
    assert set(NAMES) == {"single", "ddp", "zero1", "zero2", "zero3", "fsdp2"}
    assert len(list(shipped("accelerate_configs").rglob("*"))) == 6


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_and_we_read_the_same_engine(name: str) -> None:
    path = shipped("accelerate_configs") / f"{name}.yaml"
    engine, theirs = load_engine(name), load_config_from_file(str(path))
    assert engine == load_engine(str(path))
    assert isinstance(theirs, ClusterConfig)
    assert (engine.name, engine.offload) == (name, "none")
    assert theirs.distributed_type == TYPES.get(name, DistributedType.DEEPSPEED)
    assert theirs.deepspeed_config.get("zero_stage") == engine.zero_stage
    assert theirs.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)
    assert (theirs.mixed_precision, theirs.use_cpu) == (None, False)


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_states_nothing_of_recipe_or_profile(name: str) -> None:
    text = (shipped("accelerate_configs") / f"{name}.yaml").read_text(encoding="utf-8")

    def keys(values: dict[str, Any]) -> list[str]:
        return list(values) + [key for value in values.values() if isinstance(value, dict) for key in value]

    stated = keys(yaml.safe_load(text))
    assert not [key for key in stated if any(word in key for word in STATED_ELSEWHERE)]
    assert text.startswith("#")
    assert f"accelerate_configs/{name}.yaml" in text


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        (
            "num_processes: 2\ndistributed_type: MULTI_CPU\n",
            2,
            "distributed_type",
            "accelerate starts one process for MULTI_CPU, whatever num_processes says; use distributed_type: MULTI_GPU",
        ),
        (
            f"{DEEPSPEED}use_cpu: true\ndeepspeed_config:\n  zero_stage: 2\n",
            3,
            "use_cpu",
            "runs plain DDP instead, without saying so; leave it out",
        ),
        (f"{FSDP}use_cpu: true\nfsdp_config:\n  fsdp_version: 2\n", 3, "use_cpu", "runs plain DDP instead"),
        (f"{MULTI_GPU}use_cpu: true\n", 3, "use_cpu", "states neither device nor precision; leave it out, and use"),
        (f"{MULTI_GPU}mixed_precision: bf16\n", 3, "mixed_precision", "leave it out, and use launch.precision"),
        (f"{MULTI_GPU}mixed_precision: fp8\n", 3, "mixed_precision", "'fp8' is not allowed; one of 'no', 'fp16'"),
        (
            f"{DEEPSPEED}deepspeed_config:\n  zero_stage: 2\n  deepspeed_config_file: zero.json\n",
            5,
            "deepspeed_config.deepspeed_config_file",
            "write zero_stage here instead",
        ),
        (
            f"{DEEPSPEED}deepspeed_config:\n  zero_stage: 2\n  gradient_accumulation_steps: 4\n",
            5,
            "deepspeed_config.gradient_accumulation_steps",
            "4 is not for an engine to say; leave it out: it is computed: training.global_batch_size / (processes x "
            "launch.per_device_batch_size)",
        ),
        (
            f"{DEEPSPEED}deepspeed_config:\n  gradient_clipping: 1.0\n  zero_stage: 2\n",
            4,
            "deepspeed_config.gradient_clipping",
            "1.0 is not for an engine to say; leave it out: use training.max_grad_norm",
        ),
        (
            f"{DEEPSPEED}deepspeed_config:\n  zero_stage: 2\n  offload_optimizer_device: cpu\n",
            5,
            "deepspeed_config.offload_optimizer_device",
            "'cpu' is not for an engine to say; leave it out: use launch.offload=optimizer",
        ),
        (
            f"{DEEPSPEED}deepspeed_config:\n  zero_stage: 3\n  offload_param_device: cpu\n",
            5,
            "deepspeed_config.offload_param_device",
            "'cpu' is not for an engine to say; leave it out: use launch.offload=all",
        ),
        (f"{FSDP}fsdp_config:\n  fsdp_version: 1\n", 4, "fsdp_config.fsdp_version", "1 is not allowed; one of 2"),
        (f"{FSDP}fsdp_config: {{}}\n", 3, "fsdp_config.fsdp_version", "is missing; 2; FSDP1 is not offered"),
        (
            f"{FSDP}fsdp_config:\n  fsdp_version: 2\n  fsdp_offload_params: true\n",
            5,
            "fsdp_config.fsdp_offload_params",
            "fsdp2 cannot offload weights; leave it out: zero3 offloads weights, launch.accelerate_config=zero3 "
            "launch.offload=all",
        ),
        (
            f"{FSDP}fsdp_config:\n  fsdp_version: 2\n  fsdp_sharding_strategy: FULL_SHARD\n",
            5,
            "fsdp_config.fsdp_sharding_strategy",
            "use fsdp_version: 2 and fsdp_reshard_after_forward",
        ),
        (f"{DEEPSPEED}deepspeed_config: {{zero_stage: 0}}\n", 3, "deepspeed_config.zero_stage", "one of 1, 2 or 3"),
        (f"{DEEPSPEED}deepspeed_config: {{zero_stage: 4}}\n", 3, "deepspeed_config.zero_stage", "4 is not allowed"),
        (f"{DEEPSPEED}zero_stage: 2\ndeepspeed_config: {{zero_stage: 2}}\n", 3, "zero_stage", "below deepspeed_config"),
        (f"{MULTI_GPU}num_machine: 1\n", 3, "num_machine", "unknown key; did you mean 'num_machines'?"),
        (
            f"{DEEPSPEED}deepspeed_config:\n  zero_stge: 2\n  zero_stage: 2\n",
            4,
            "deepspeed_config.zero_stge",
            "did you mean 'deepspeed_config.zero_stage'?",
        ),
        (DEEPSPEED, 1, "deepspeed_config", "is missing with distributed_type: DEEPSPEED"),
        (FSDP, 1, "fsdp_config", "is missing with distributed_type: FSDP"),
        (
            f"{MULTI_GPU}deepspeed_config:\n  zero_stage: 2\n",
            3,
            "deepspeed_config",
            "has no effect with distributed_type: MULTI_GPU; set distributed_type: DEEPSPEED",
        ),
        (
            f"{MULTI_GPU}fsdp_config:\n  fsdp_version: 2\n",
            3,
            "fsdp_config",
            "has no effect with distributed_type: MULTI_GPU; set distributed_type: FSDP",
        ),
        ("distributed_type: MULTI_GPU\n", 1, "num_processes", "is missing; processes where nobody says otherwise"),
        ("num_processes: 2\n", 1, "distributed_type", "is missing; the engine"),
        ("distributed_type: MULTI_GPU\nnum_processes: 0\n", 2, "num_processes", "greater than or equal to 1"),
        ("distributed_type: MEGATRON_LM\nnum_processes: 2\n", 1, "distributed_type", "one of 'NO', 'MULTI_GPU'"),
        (f"{MULTI_GPU}tpu_env: [A=1]\n", 3, "tpu_env", "should have at most 0 items"),
        (f"{MULTI_GPU}gpu_ids: 0,1\n", 3, "gpu_ids", "'0,1' is not allowed"),
    ],
)
def test_what_is_no_engine_is_refused_in_a_sentence_with_line_and_key(
    text: str, line: int, key: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        load_engine(str(path))
    assert caught.value.exit_code == EXIT_BAD_INPUT
    (problem,) = caught.value.problems
    assert (problem.origin, problem.key) == (f"{path}:{line}", key)
    assert said in str(problem)
    assert len(str(problem).splitlines()) == 1


def test_a_file_that_names_a_second_file_is_told_what_to_write(tmp_path: Path) -> None:
    path = write(tmp_path, f"{DEEPSPEED}deepspeed_config:\n  deepspeed_config_file: zero.json\n")
    with pytest.raises(BadInput) as caught:
        load_engine(str(path))
    keys = [(problem.origin, problem.key) for problem in caught.value.problems]
    assert keys == [
        (f"{path}:3", "deepspeed_config.zero_stage"),
        (f"{path}:4", "deepspeed_config.deepspeed_config_file"),
    ]


def test_an_unknown_engine_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadInput, match=r"launch.accelerate_config: there is no .* 'zero4'; did you mean 'zero"):
        load_engine("zero4")


AS_WRITTEN = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_GPU
downcast_bf16: 'no'
enable_cpu_affinity: false
gpu_ids: all
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""
"""What ``accelerate config`` 1.15 writes for two GPUs and no mixed precision."""


NOT_OFFLOADED = {"offload_optimizer_device": "none", "offload_param_device": "none"}


@pytest.mark.parametrize(
    "text", [AS_WRITTEN, AS_WRITTEN.replace("'no'", "no"), AS_WRITTEN.replace("'no'\nenable", "false\nenable")]
)
def test_what_accelerate_config_writes_is_an_engine(text: str, tmp_path: Path) -> None:
    assert load_engine(str(write(tmp_path, text))) == Engine("ddp")


@pytest.mark.parametrize(
    ("kind", "deepspeed", "name"),
    [
        ("MULTI_GPU", {}, "ddp"),
        ("DEEPSPEED", {"zero_stage": 1}, "zero1"),
        ("DEEPSPEED", {"zero_stage": 2, **NOT_OFFLOADED}, "zero2"),
        ("DEEPSPEED", {"zero_stage": 3, **NOT_OFFLOADED, "zero3_save_16bit_model": False}, "zero3"),
    ],
)
def test_what_accelerate_itself_writes_is_an_engine(
    kind: Any, deepspeed: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """As its questionnaire ends where every answer but the engine is its default, in commands/config/cluster.py."""
    path = tmp_path / "mine.yaml"
    answers = {"gradient_accumulation_steps": 1, "zero3_init_flag": False} if deepspeed else {}
    config = ClusterConfig(
        compute_environment="LOCAL_MACHINE",  # type: ignore[arg-type]
        distributed_type=kind,
        num_processes=2,
        gpu_ids="all",
        mixed_precision="no",
        downcast_bf16="no",  # type: ignore[arg-type]
        machine_rank=0,
        num_machines=1,
        main_process_ip=None,
        main_process_port=None,
        main_training_function="main",
        deepspeed_config={**deepspeed, **answers},
        fsdp_config={},
        rdzv_backend="static",
        same_network=True,
        tpu_env=[],
        use_cpu=False,
        debug=False,
        enable_cpu_affinity=False,
    )
    config.to_yaml_file(str(path))
    assert load_engine(str(path)) == Engine(name)


@pytest.mark.parametrize("steps", ["1", "auto"])
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_a_deepspeed_config_may_say_what_says_nothing(name: str, steps: str, tmp_path: Path) -> None:
    said = f"  gradient_accumulation_steps: {steps}\n  gradient_clipping: auto\n"
    said += "".join(f"  {key}: {value}\n" for key, value in NOT_OFFLOADED.items())
    text = f"{DEEPSPEED}deepspeed_config:\n  zero_stage: {name[-1]}\n{said}"
    assert load_engine(str(write(tmp_path, text))) == Engine(name) == load_engine(name)


def test_an_fsdp_config_may_say_that_nothing_is_offloaded(tmp_path: Path) -> None:
    text = f"{FSDP}fsdp_config:\n  fsdp_version: 2\n  fsdp_offload_params: false\n"
    engine = load_engine(str(write(tmp_path, text)))
    assert engine == load_engine("fsdp2")
    assert "offload" not in " ".join(engine.fsdp_config() or ())
