"""What an engine cannot run: said before anything is started, with what to take instead."""

import itertools
from typing import Any

import pytest
from typer.testing import CliRunner

from finelaunch.cli import app
from finelaunch.engines import NAMES, Engine, engine_faults
from finelaunch.errors import EXIT_BAD_INPUT, BadInput
from finelaunch.launch import profile
from finelaunch.launch.check import check
from finelaunch.recipe.load import read_overrides


def found(engine: Engine, **changes: Any) -> list[Any]:
    """Return what ``engine`` cannot run, by default of two processes on GPUs, or of one where it is one."""
    is_one = engine.name == "single"
    settings = {"target": "inprocess" if is_one else "torchrun", "device": "cuda", "precision": "auto"}
    settings |= {"num_processes": 1 if is_one else 2, "optim": "adamw_torch_fused"}
    return list(engine_faults(engine, **{**settings, **changes}))


OFFLOADS = {"zero1": ("optimizer",), "zero2": ("optimizer",), "zero3": ("optimizer", "all")}
CANNOT: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("fsdp2", "none", {"device": "cpu"}, "accelerate_config", "use zero3, which cuts the weights on CPUs too"),
    ("single", "none", {"num_processes": 2}, "accelerate_config", "use ddp, or num_processes_per_node: 1"),
    ("single", "none", {"target": "torchrun"}, "target", "inprocess"),
    ("single", "none", {"target": "slurm"}, "target", "inprocess"),
    *((name, "none", {"target": "inprocess"}, "target", "torchrun") for name in NAMES if name != "single"),
    *(
        (name, offload, {}, "offload", " or ".join(["none", *OFFLOADS.get(name, ())]))
        for name, offload in itertools.product(NAMES, ("optimizer", "all"))
        if offload not in OFFLOADS.get(name, ())
    ),
    *((name, "all", {}, "offload", "use zero1, zero2 or zero3") for name in NAMES if name not in OFFLOADS),
    ("fsdp2", "none", {"precision": "fp16"}, "precision", "or use zero3"),
    ("fsdp2", "none", {"precision": "fp16"}, "precision", "bf16, fp32, tf32 or auto"),
    *((name, "none", {"device": "cpu", "precision": "bf16"}, "precision", "fp32 or auto") for name in OFFLOADS),
    *(
        (name, "none", {"optim": "adafactor"}, "accelerate_config", "use training.optim=adamw_torch_fused, or ddp")
        for name in ("zero1", "zero2", "zero3", "fsdp2")
    ),
]


@pytest.mark.parametrize(("name", "offload", "changes", "key", "instead"), CANNOT)
def test_what_an_engine_cannot_run_is_said_once_with_the_alternative(
    name: str, offload: Any, changes: dict[str, Any], key: str, instead: str
) -> None:
    (fault,) = found(Engine(name, offload=offload), **changes)
    assert fault.key == key
    assert instead in (fault.allowed, fault.remedy)
    assert name in fault.what or "single" in fault.what
    assert "\n" not in f"{fault.what}{fault.allowed}{fault.remedy}"


def test_all_else_can_be_run() -> None:
    tried = 0
    for name, offload, device, optim in itertools.product(
        NAMES, ("none", "optimizer", "all"), ("cpu", "cuda"), ("adamw_torch_fused", "adamw_torch", "sgd", "adafactor")
    ):
        refused = offload != "none" and offload not in OFFLOADS.get(name, ())
        refused |= name == "fsdp2" and device == "cpu"
        refused |= optim == "adafactor" and name not in ("single", "ddp")
        counts = (1, None) if name == "single" else (1, 2, 64, None)
        for precision, count in itertools.product(("auto", "fp32", "tf32", "bf16", "fp16"), counts):
            engine = Engine(name, offload=offload)  # type: ignore[arg-type]
            faults = found(engine, device=device, optim=optim, precision=precision, num_processes=count)
            of_precision = (name, precision) == ("fsdp2", "fp16")
            of_precision |= name.startswith("zero") and (device, precision) == ("cpu", "bf16")
            assert bool(faults) == (refused or of_precision), (name, offload, device, optim, precision, count)
            tried += not faults
    assert tried > 1000


@pytest.mark.parametrize(
    ("on", "words", "said"),
    [
        (
            "cpu",
            ["launch.accelerate_config=fsdp2", "launch.target=torchrun"],
            "command line: launch.accelerate_config: fsdp2 on a CPU: accelerate has no FSDP without a GPU and would "
            "run plain DDP; use zero3, which cuts the weights on CPUs too",
        ),
        (
            "fsdp2",
            ["launch.device=cpu", "launch.num_processes_per_node=2"],
            "fsdp2.yaml:3: launch.accelerate_config: fsdp2 on a CPU",
        ),
        (
            "cpu",
            ["launch.num_processes_per_node=2"],
            "cpu.yaml:3: launch.accelerate_config: single is one process, and 2 are asked for; use ddp, or",
        ),
        (
            "cpu",
            ["launch.target=torchrun"],
            "command line: launch.target: torchrun starts a process for each device, and single is one; inprocess",
        ),
        (
            "cpu_ddp",
            ["launch.target=inprocess"],
            "command line: launch.target: inprocess is one process without others, and ddp is not; torchrun",
        ),
        (
            "cpu",
            ["launch.offload=optimizer"],
            "command line: launch.offload: single cannot offload 'optimizer'; none; use zero1, zero2 or zero3",
        ),
        ("cpu_zero2", ["launch.offload=all"], "launch.offload: zero2 cannot offload 'all'; none or optimizer"),
        *(
            (
                "fsdp2",
                [f"launch.offload={offload}"],
                f"command line: launch.offload: fsdp2 cannot offload '{offload}'; none; use zero1, zero2 or zero3",
            )
            for offload in ("optimizer", "all")
        ),
        (
            "fsdp2",
            ["launch.precision=fp16"],
            "command line: launch.precision: fsdp2 in fp16 cannot be resumed: its loss scaling does not go with its "
            "checkpoints; bf16, fp32, tf32 or auto; or use zero3",
        ),
        *(
            (
                f"cpu_{name}",
                ["launch.precision=bf16"],
                f"command line: launch.precision: {name} on a CPU computes in fp32 alone; fp32 or auto; or use ddp",
            )
            for name in ("zero1", "zero2", "zero3")
        ),
        (
            "zero3",
            ["training.optim=adafactor"],
            "zero3.yaml:3: launch.accelerate_config: zero3 cuts and flattens what adafactor factors by rows",
        ),
    ],
)
def test_validate_refuses_what_the_engine_cannot_run(
    on: str, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "cpu_has_bf16", lambda: True)
    with pytest.raises(BadInput) as caught:
        check("imdb/smoke", read_overrides(words), on)
    assert caught.value.exit_code == EXIT_BAD_INPUT
    assert len(caught.value.problems) == 1
    assert said in str(caught.value)
    done = CliRunner().invoke(app, ["validate", "imdb/smoke", *words, "--on", on])
    assert str(done.exception) == str(caught.value)


def test_several_faults_are_said_at_once() -> None:
    words = ["launch.offload=optimizer", "launch.target=torchrun", "launch.num_processes_per_node=3"]
    with pytest.raises(BadInput) as caught:
        check("imdb/smoke", read_overrides([*words, "training.learning_rat=1"]), "cpu")
    assert [problem.key for problem in caught.value.problems] == ["training.learning_rat"]
    with pytest.raises(BadInput) as caught:
        check("imdb/smoke", read_overrides(words), "cpu")
    keys = [problem.key for problem in caught.value.problems]
    assert keys == ["launch.accelerate_config", "launch.target", "launch.offload"]


def test_a_missing_deepspeed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from finelaunch import engines
    from finelaunch.errors import RequirementMissing

    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    for name in ("zero1", "zero2", "zero3"):
        with pytest.raises(RequirementMissing, match=rf"{name} needs DeepSpeed; pip install 'finelaunch\[deepspeed\]'"):
            Engine(name).require()
    for name in ("single", "ddp", "fsdp2"):
        Engine(name).require()
