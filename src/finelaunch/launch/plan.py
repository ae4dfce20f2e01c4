"""What ``launch`` does, as a value: computed without torch, without a GPU, the same on every machine.

What only the moment of starting knows stays symbolic: ``<python>``, ``<port>``, ``<run>``, ``<rank>``, ``<cores>``.
What cannot be known yet is said to be unknown, with what makes it known. Numbers of bytes are advice: they come from
written formulas (``estimate.py``) and change nothing.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finelaunch.data.section import given_sources
from finelaunch.data.sources import HUB_PREFIX
from finelaunch.errors import FinelaunchError
from finelaunch.launch import sbatch
from finelaunch.launch.cluster import Cluster
from finelaunch.launch.fit import check_steps
from finelaunch.launch.needs import LATER, needs_of
from finelaunch.launch.place import check_place, place
from finelaunch.launch.profile import Profile
from finelaunch.methods.limits import scratch_note
from finelaunch.preparation import cached_report
from finelaunch.recipe.schema import Recipe
from finelaunch.section.document import Document
from finelaunch.section.lookup import find
from finelaunch.training.placement import Placement, batch_arithmetic, count_of
from finelaunch.training.section import BUDGET_STEPS, TrainingSection
from finelaunch.training.selection import patience_text

PYTHON, PORT, RUN, RANK, THREADS = "<python>", "<port>", "<run>", "<rank>", "<cores / processes>"


@dataclass(frozen=True)
class LaunchPlan:
    """Everything that a launch would do.

    Args:
        recipe: The recipe's name.
        profile: The profile's name.
        cluster: The cluster's name; None for what Slurm does not start.
        target: Who starts the processes.
        num_nodes: Machines.
        num_processes: All processes; None while unknown.
        device: ``cpu`` or ``cuda``.
        precision: As the profile has it.
        engine: Its name, what is offloaded, the backend, and what the Trainer is given for it.
        argv: The command of each process.
        environment: What each process finds set beside the caller's environment.
        by_hand: The same started by hand.
        batch: The cut of the global batch; the numbers are None while unknown.
        steps: Optimizer steps of an epoch and in all; None with the reason while unknown.
        method: What is trained: its name, trained and all parameters; None while unknown.
        memory: Bytes a device, by what they hold; None with the reason while unknown.
        traffic: Bytes a rank sends each optimizer step; None while unknown.
        advice: What may go better; never acted upon.
        sbatch: The batch script of a job; None for what Slurm does not start.
    """

    recipe: str
    profile: str
    cluster: str | None
    target: str
    num_nodes: int
    num_processes: int | None
    device: str
    precision: str
    engine: dict[str, Any]
    argv: tuple[str, ...]
    environment: dict[str, str]
    by_hand: str
    batch: dict[str, Any]
    steps: dict[str, Any]
    method: dict[str, Any]
    memory: dict[str, Any]
    traffic: dict[str, Any]
    advice: tuple[str, ...]
    sbatch: str | None

    def as_json(self) -> str:
        """Return the plan as one JSON object."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def as_text(self) -> str:
        """Return the plan for a reader."""
        count = count_of(self.num_processes) if self.num_processes else "a process for each visible GPU"
        machine = f"{self.profile} of {self.cluster}" if self.cluster else self.profile
        if self.num_nodes > 1:
            count += f" on {self.num_nodes} nodes"
        set_for_each = " ".join(map("=".join, self.environment.items()))
        lines = [
            f"{self.recipe} on {machine}: {count}, engine {self.engine['name']}, {self.device}, {self.precision}",
            _line("each process", " ".join(self.argv)),
            *([_line("environment", set_for_each)] if set_for_each else []),
            _line("by hand", self.by_hand),
        ]
        if self.engine["backend"] is not None:
            lines.append(_line("collectives", self.engine["backend"]))
        lines += [
            _line(name, json.dumps(self.engine[key]))
            for name, key in (("DeepSpeed", "deepspeed"), ("FSDP", "fsdp"))
            if self.engine[key] is not None
        ]
        lines += [_line("batch", self.batch["arithmetic"]), _line("steps", self.steps["text"])]
        lines += [_line("method", self.method["text"]), _line("memory", self.memory["text"])]
        lines += [_line("checkpointing", text) for text in [self.memory.get("checkpointing")] if text]
        lines.append(_line("sends", self.traffic["text"]))
        lines += [_line("advice", text) for text in self.advice]
        if self.sbatch is not None:
            lines += ["  batch script", *(f"    {line}".rstrip() for line in self.sbatch.splitlines())]
        return "\n".join(lines)


Site = tuple[Cluster, Document, str]
"""A cluster profile, the document behind it, and its name."""


@dataclass(frozen=True)
class _Start:
    """How processes are started; as in :class:`LaunchPlan`."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    by_hand: str
    sbatch: str | None = None


def make_plan(
    recipe_name: str,
    words: Sequence[str],
    recipe: Recipe,
    document: Document,
    profile_name: str,
    profile: Profile,
    profile_document: Document,
    options: Sequence[str] = (),
    site: Site | None = None,
) -> LaunchPlan:
    """Return the plan of a recipe on a profile.

    Args:
        recipe_name: As it was typed.
        words: The ``key=value`` words of the command line.
        recipe: What they make.
        document: Behind it.
        profile_name: As it was typed.
        profile: What that makes.
        profile_document: Behind it.
        options: Further options of ``train`` to hand on.
        site: Where the profile is one of Slurm: the cluster profile, the document behind it, and its name.

    Raises:
        BadInput: The two do not go together.
    """
    placement = None
    if profile.num_processes:
        placement = place(recipe, profile, profile_document)
    else:
        check_place(recipe, profile, profile_document)
    engine = placement.engine if placement else profile.engine(profile_document)
    start = _start(recipe_name, words, profile_name, profile, options, site)
    report = _report(recipe, document)
    steps = _steps(recipe, report)
    if steps["total"] is not None:
        check_steps(recipe, document, steps["total"])
    held = scratch_note(recipe.method, recipe.model)
    needs = needs_of(recipe, profile, engine, placement, _num_labels(recipe, report))
    return LaunchPlan(
        recipe=recipe_name,
        profile=profile_name,
        cluster=site[2] if site else None,
        target=profile.target,
        num_nodes=profile.num_nodes,
        num_processes=profile.num_processes,
        device=profile.device,
        precision=profile.precision,
        engine={
            "name": engine.name,
            "offload": engine.offload,
            "backend": engine.backend(profile.device),
            "deepspeed": engine.deepspeed(),
            "fsdp": engine.fsdp_config(),
        },
        argv=start.argv,
        environment=start.environment,
        by_hand=start.by_hand,
        batch=_batch(recipe, profile, placement),
        steps=steps,
        method=needs.method,
        memory=needs.memory,
        traffic=needs.traffic,
        advice=(*([held] if held else []), *needs.advice),
        sbatch=start.sbatch,
    )


def rank_command(plan: LaunchPlan, symbols: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command and the environment of one rank, symbols replaced."""
    run = f"{RUN}/"
    argv = tuple(symbols.get(word, symbols[RUN] + word[5:] if word.startswith(run) else word) for word in plan.argv)
    return argv, {name: symbols.get(value, value) for name, value in plan.environment.items()}


def _start(
    recipe_name: str,
    words: Sequence[str],
    profile_name: str,
    profile: Profile,
    options: Sequence[str],
    site: Site | None,
) -> _Start:
    if profile.target != "slurm":
        train = ("train", recipe_name, *words, "--on", profile_name)
        argv = (PYTHON, "-m", "finelaunch", *train, "--run-dir", RUN, *options)
        return _Start(argv, _environment(profile), _by_hand(profile, (*train, *options)))
    assert site is not None, "a profile of Slurm is planned for a cluster"
    cluster, cluster_document, _ = site
    path = find(recipe_name, "recipes").resolve()
    run_name = f"{path.parent.name}-{path.stem}"
    frozen = (f"{RUN}/slurm/recipe.yaml", "--on", f"{RUN}/slurm/profile.yaml")
    return _Start(
        argv=(PYTHON, "-m", "finelaunch", "train", *frozen, "--run-dir", RUN, *options),
        environment=sbatch.rank_environment(cluster, profile),
        by_hand=sbatch.by_hand(cluster, profile, recipe_name, profile_name, run_name, (*words, *options)),
        sbatch=sbatch.render(cluster, cluster_document, profile, run_name, run=RUN, python=PYTHON),
    )


def _environment(profile: Profile) -> dict[str, str]:
    if profile.target == "inprocess":
        return {}
    world = str(profile.num_processes) if profile.num_processes else "<visible GPUs>"
    found = {
        "RANK": RANK,
        "LOCAL_RANK": RANK,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": PORT,
        "OMP_NUM_THREADS": THREADS,
    }
    return {**found, "DS_ACCELERATOR": "cpu"} if profile.device == "cpu" else found


def _by_hand(profile: Profile, train: Sequence[str]) -> str:
    command = shlex.join(("finelaunch", *train))
    if profile.target == "inprocess":
        return command
    return f"torchrun --nproc-per-node {profile.num_processes or 'gpu'} -m {command}"


def _batch(recipe: Recipe, profile: Profile, placement: Placement | None) -> dict[str, Any]:
    size = recipe.training.global_batch_size
    if placement is None:
        cut = f"{profile.per_device_batch_size or '?'} per device x ? processes x ? accumulated"
        numbers = {"per_device": profile.per_device_batch_size, "accumulation": None}
        return {"global": size, **numbers, "arithmetic": f"global batch {size} = {cut}; {LATER}"}
    cut = (placement.per_device_batch_size, placement.num_processes, placement.gradient_accumulation_steps)
    return {"global": size, "per_device": cut[0], "accumulation": cut[2], "arithmetic": batch_arithmetic(*cut)}


def _report(recipe: Recipe, document: Document) -> dict[str, Any] | None:
    """Return what is known of the prepared data; None where it is not prepared, or cannot be looked for."""
    if _is_on_hub(recipe):
        return None
    try:
        values = recipe.task.model_dump(mode="json")
        return cached_report(recipe.data, recipe.model, values, document)
    except FinelaunchError:
        return None


def _is_on_hub(recipe: Recipe) -> bool:
    """Return whether rows come from the hub: which they are only it can say, and a plan asks nobody."""
    return any(source.section.path.startswith(HUB_PREFIX) for source in given_sources(recipe.data))


def _steps(recipe: Recipe, report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the steps of an epoch and in all, with what is counted and what may end them."""
    found = _num_steps(recipe, report)
    if getattr(recipe.task, "packing", False):
        packs = (report or {}).get("splits", {}).get("train", {}).get("packing")
        found["text"] += f"; a row of the global batch is a pack (task.packing{f': {packs}' if packs else ''})"
    if recipe.training.early_stopping_patience is not None:
        found["text"] += f"; fewer with {patience_text(recipe.training)}"
    return found


def _num_steps(recipe: Recipe, report: Mapping[str, Any] | None) -> dict[str, Any]:
    training = recipe.training
    if training.time_budget_minutes is not None:
        minutes = f"{training.time_budget_minutes:g} minutes (training.time_budget_minutes)"
        epoch = None if report is None else _steps_an_epoch(training, report)
        most = "" if epoch is None else f"{epoch:,} an epoch, "
        if epoch is not None or training.max_steps > 0:
            most += f"at most {_steps_in_all(training, epoch or 0):,} in all; "
        text = f"{most}unknown until {BUDGET_STEPS} steps are measured: those that fit into {minutes}"
        return {"epoch": epoch, "total": None, "text": text}
    if report is None:
        known = f"{training.max_steps} in all; " if training.max_steps > 0 else ""
        why = ", as the data is the hub's" if _is_on_hub(recipe) else " until the data is encoded"
        text = f"{known}those of an epoch are unknown{why}; train and launch prepare it first"
        return {"epoch": None, "total": training.max_steps if training.max_steps > 0 else None, "text": text}
    epoch = _steps_an_epoch(training, report)
    total = _steps_in_all(training, epoch)
    return {"epoch": epoch, "total": total, "text": f"{epoch:,} an epoch, {total:,} in all"}


def _steps_an_epoch(training: TrainingSection, report: Mapping[str, Any]) -> int:
    return math.ceil(report["splits"]["train"]["num_features"] / training.global_batch_size)


def _steps_in_all(training: TrainingSection, epoch: int) -> int:
    return training.max_steps if training.max_steps > 0 else math.ceil(training.num_train_epochs * epoch)


def _num_labels(recipe: Recipe, report: Mapping[str, Any] | None) -> int:
    names = getattr(recipe.task, "label_names", None) or (report or {}).get("facts", {}).get("label_names")
    return len(names) if names else 2


def _line(name: str, text: str) -> str:
    return f"  {name:<13} {text}"
