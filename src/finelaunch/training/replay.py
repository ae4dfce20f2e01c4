"""``finelaunch train --replay FILE``: the batch of a failed step once more, with its weights and its random states.

It says whether the same comes of it again, and what of the batch, of the model and of the gradient is not finite. It
runs in one process whatever the run had, and writes nothing into the run.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.sampler import TrainingRows
from finelaunch.data.section import DataSection
from finelaunch.errors import BadInput, Problem
from finelaunch.methods import MethodSection
from finelaunch.methods.build import build_model
from finelaunch.models.adapters import adapter_tensors
from finelaunch.models.section import ModelSection
from finelaunch.models.weights import is_adapted
from finelaunch.preparation import Prepared, prepare
from finelaunch.run.directory import PACKAGES
from finelaunch.run.log import quiet_libraries
from finelaunch.run.ranks import ALONE
from finelaunch.section.base import Section, build
from finelaunch.section.document import Document
from finelaunch.tasks import TaskSection, task_for
from finelaunch.tasks.base import IGNORED, Task, training_losses
from finelaunch.training.placement import Placement, move, settle
from finelaunch.training.recorder import FORMAT, restore_random_states
from finelaunch.training.section import TrainingSection

if TYPE_CHECKING:
    import torch

KEYS = ("run", "kind", "step", "rank", "device", "precision", "engine", "num_threads", "weights", "micro_batches")
KEYS += ("recipe", "data", "world_size", "versions", "checkpoint", "num_steps")
NAMED_TENSORS = 5


class _Sections(Section):
    """What is read of a run's recipe."""

    task: TaskSection
    model: ModelSection
    data: DataSection
    method: MethodSection
    training: TrainingSection


@dataclass(frozen=True)
class Recorded:
    """A file that a failed step left.

    Args:
        path: Where it is.
        facts: What stands in it.
    """

    path: Path
    facts: Mapping[str, Any]

    @property
    def device(self) -> str:
        """What it was computed on: ``cpu`` or ``cuda``."""
        return self.facts["device"]


def read_record(path: Path) -> Recorded:
    """Return what a failed step left.

    Raises:
        BadInput: The file is not there, or is none of these.
    """
    remedy = "name RUN/replay/step-N-rank-R.json, as the run's last message does"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(Problem(str(path), "--replay", f"cannot be read: {error.strerror}", "", remedy)) from None
    except ValueError:
        raise BadInput(Problem(str(path), "--replay", "is no JSON", "", remedy)) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT or any(key not in facts for key in KEYS):
        raise BadInput(Problem(str(path), "--replay", "was not left by a failed step", "", remedy))
    return Recorded(path, facts)


def replay(recorded: Recorded, placement: Placement) -> dict[str, Any]:
    """Compute the micro-batches of a failed step again and return what came of them, for JSON.

    Args:
        recorded: What :func:`read_record` gave.
        placement: A settled placement of one process; the recorded precision is taken where the device is the same.

    Raises:
        BadInput: The recipe, the rows or the weights are not what the step was computed with.
        RequirementMissing: The device cannot compute in that precision.
    """
    quiet_libraries()
    import torch

    from finelaunch.training.stages import held

    facts, origin = recorded.facts, str(recorded.path)
    if placement.device == recorded.device:
        placement = settle(replace(placement, precision=facts["precision"]), ALONE)
    with _refusals(origin):
        document = Document({name: facts["recipe"].get(name) for name in _Sections.model_fields}, name=origin)
        sections = build(_Sections, document)
    task = task_for(sections.task)
    prepared = prepare(sections.data, sections.model, task, sections.task.model_dump(mode="json"), document)
    _refuse_other_rows(prepared, facts, origin)
    torch.set_num_threads(facts["num_threads"])
    _be_deterministic(sections.training)
    built = build_model(
        sections.model,
        sections.method,
        task,
        prepared.tokenizer,
        prepared.facts,
        sections.task.max_length,
        sections.training.seed,
        placement.precision,
    )
    model = built.model
    weights, inexact = _load_weights(model, recorded)
    spoilt = [name for name, values in model.state_dict().items() if not bool(torch.isfinite(values).all())]
    move(model, placement)
    if facts["engine"].startswith("zero") and placement.precision in ("bf16", "fp16"):
        model.to(_dtype(placement.precision))  # DeepSpeed computes in weights of 16 bit, the others in autocast
    again = _Again(model, task, prepared, placement, facts)
    stages = built.method.stages(model, facts["num_steps"])
    stage = next(one for one in stages if facts["step"] <= one.end_step)
    with _refusals(origin), held(model, stage):
        batches = [again.batch(batch) for batch in facts["micro_batches"]]
        rows = [row for batch in facts["micro_batches"] for row in again.rows(batch)]
    inexact += _differences(facts, placement)
    return {
        "file": origin,
        "kind": facts["kind"],
        "step": facts["step"],
        "rank": facts["rank"],
        "device": placement.device,
        "precision": placement.precision,
        "weights": weights,
        "inexact_because": inexact,
        "same_again": all(batch["loss"]["same"] for batch in batches),
        "weights_not_finite": {"count": len(spoilt), "first": spoilt[:NAMED_TENSORS]},
        "micro_batches": batches,
        "rows": rows,
    }


class _Again:
    """Computes recorded micro-batches again.

    Args:
        model: With the recorded weights, on its device.
        task: Its task.
        prepared: The prepared data.
        placement: What it runs on.
        facts: What was recorded.
    """

    def __init__(
        self, model: Any, task: Task, prepared: Prepared, placement: Placement, facts: Mapping[str, Any]
    ) -> None:
        self.model = model
        self.task = task
        self.prepared = prepared
        self.placement = placement
        self.facts = facts
        self.train = prepared.splits["train"]
        self.dataset = TrainingRows(self.train.features, IGNORED)
        self.row_losses = training_losses(task, self.train.class_weights)

    def batch(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Return loss and gradient of a micro-batch, computed as training did, and where they are first not finite."""
        import torch

        self.model.train()
        self.model.zero_grad()
        restore_random_states(recorded["random_states"], self.placement.device)
        with _first_not_finite(self.model) as modules:
            losses, _ = self._losses(recorded["rows"])
        num_items = torch.tensor(recorded["num_items"], device=losses.device)
        loss = losses.sum() / num_items.clamp(min=1) * self.facts["world_size"]
        loss.backward()
        gradients = [(name, one.grad) for name, one in self.model.named_parameters() if one.grad is not None]
        bad = [name for name, gradient in gradients if not bool(torch.isfinite(gradient).all())]
        norm = float(torch.nn.utils.get_total_norm([gradient for _, gradient in gradients]))
        found = repr(float(loss.detach()))
        return {
            "micro_step": recorded["micro_step"],
            "loss": {"recorded": recorded["loss"], "computed": found, "same": found == recorded["loss"]},
            "first_module_not_finite": modules[0] if modules else None,
            "gradient_norm": number(norm),
            "gradients_not_finite": {"count": len(bad), "first": bad[:NAMED_TENSORS]},
        }

    def rows(self, recorded: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a micro-batch, each alone, without dropout."""
        import torch

        self.model.eval()
        for row, identity in zip(recorded["rows"], recorded["example_ids"], strict=True):
            with torch.no_grad():
                losses, num_targets = self._losses([row])
            loss = float(losses.sum()) / max(num_targets, 1)
            tokens = int(self.train.features.lengths[max(row, ~row)])
            about = {"micro_step": recorded["micro_step"], "row": row, "example_id": identity, "num_tokens": tokens}
            yield {**about, "filling": row < 0, "loss": number(loss), "finite": math.isfinite(loss)}

    def _losses(self, rows: Sequence[int]) -> tuple["torch.Tensor", int]:
        """Return the loss of each row, and the number of their targets."""
        import torch
        from accelerate.utils import convert_to_fp32

        batch = self.task.collate([self.dataset[row] for row in rows], self.prepared.tokenizer)
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        labels = batch.pop("labels")
        mixed = self.placement.precision in ("bf16", "fp16") and not self.facts["engine"].startswith("zero")
        kind = self.model.device.type
        with torch.autocast(kind, dtype=_dtype(self.placement.precision)) if mixed else nullcontext():
            outputs: Any = self.model(**batch)
        outputs = convert_to_fp32(outputs) if mixed else outputs
        return self.row_losses(outputs, labels), int((labels != IGNORED).sum())


def _load_weights(model: Any, recorded: Recorded) -> tuple[str, list[str]]:
    """Give ``model`` the weights of the failed step, or those of the checkpoint before it; return which, and what for.

    Raises:
        BadInput: Neither is there.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    kept, why, aliases = recorded.facts["weights"].get("file"), recorded.facts["weights"].get("why"), {}
    if kept is not None:
        path = recorded.path.parent / Path(kept).name
        aliases, inexact = recorded.facts["weights"].get("aliases", {}), []
    else:
        checkpoint = recorded.facts["checkpoint"] or "none"
        name = "adapter_model.safetensors" if is_adapted(model) else "model.safetensors"
        path = recorded.path.parent.parent / "checkpoints" / checkpoint / name
        inexact = [f"the weights of the step were not kept ({why}), those of {checkpoint} are taken"]
        inexact *= not checkpoint.endswith(f"-{recorded.facts['step'] - 1}")  # else they are the same
    try:
        weights = load_file(path)
        weights |= {name: weights[other] for name, other in aliases.items()}
        if kept is None and is_adapted(model):
            weights = {name: weights[key] for key, name in adapter_tensors(model).items()}
        missing, unknown = model.load_state_dict(weights, strict=False)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        what = f"the weights {path} cannot be loaded: {str(error).splitlines()[0]:.200}"
        raise BadInput(Problem(str(recorded.path), "weights", what, "", "keep the replay folder together")) from None
    spared = set(getattr(model, "all_tied_weights_keys", None) or ())
    if is_adapted(model):  # of its base nothing was kept
        spared |= set(missing) - {name for name, one in model.named_parameters() if one.requires_grad}
    if unknown or set(missing) - spared:
        what = f"{path} is of another model: {', '.join(sorted({*unknown, *missing}))[:200]} do not fit"
        raise BadInput(Problem(str(recorded.path), "weights", what))
    return str(path), inexact


def _refuse_other_rows(prepared: Prepared, facts: Mapping[str, Any], origin: str) -> None:
    """Refuse rows that changed since the step was computed.

    Raises:
        BadInput: They did.
    """
    before, after = facts["data"].get("train"), prepared.report["splits"]["train"].get("fingerprint")
    if before != after:
        what = f"the rows have changed since the run: their fingerprint was {before!r} and is {after!r}"
        raise BadInput(Problem(origin, "data.train.path", what, "", "put the file back"))


def _differences(facts: Mapping[str, Any], placement: Placement) -> list[str]:
    """Return what is other than when the step was computed, a sentence each."""
    from importlib.metadata import version

    found = []
    if (placement.device, placement.precision) != (facts["device"], facts["precision"]):
        before = f"{facts['device']} in {facts['precision']}"
        found.append(f"the run computed on {before}, and this is {placement.device} in {placement.precision}")
    versions = {name: kept for name, kept in facts["versions"].items() if name in PACKAGES}
    other = [name for name, kept in versions.items() if name in ("torch", "transformers") and version(name) != kept]
    return found + [f"{name} was {versions[name]} and is {version(name)}" for name in other]


def _be_deterministic(section: TrainingSection) -> None:
    if section.deterministic:
        from transformers.trainer_utils import enable_full_determinism

        enable_full_determinism(section.seed)


@contextmanager
def _refusals(origin: str) -> Iterator[None]:
    """Turn what a file that was changed by hand leads to into a problem of that file.

    Raises:
        BadInput: Something in it is of another shape.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        what = f"does not say what a failed step does: {type(error).__name__}: {error}"
        raise BadInput(Problem(origin, "--replay", what[:300], "", "use the file as the run left it")) from error


@contextmanager
def _first_not_finite(model: Any) -> Iterator[list[str]]:
    """Give a list to which the first module is added that returns what is not finite, inner ones before outer ones."""
    import torch

    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: Any, _: Any, output: Any) -> None:
            if not found and any(not bool(torch.isfinite(one).all()) for one in _floats(output)):
                found.append(f"{name or 'the model'} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _floats(output: Any) -> Iterator["torch.Tensor"]:
    """Yield the tensors of floating-point numbers in what a module returned."""
    import torch

    if isinstance(output, torch.Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        yield from (one for value in output.values() for one in _floats(value))
    elif isinstance(output, list | tuple):
        yield from (one for value in output for one in _floats(value))


def number(value: float) -> float | str:
    """Return a number for JSON: one that is not finite as text."""
    return value if math.isfinite(value) else repr(value)


def _dtype(precision: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def as_text(report: Mapping[str, Any]) -> str:
    """Return what :func:`replay` found, for a reader."""
    same = "the same comes of it again" if report["same_again"] else "something else comes of it"
    lines = [f"step {report['step']}, rank {report['rank']}, on {report['device']} in {report['precision']}: {same}"]
    lines += [f"not exact: {why}" for why in report["inexact_because"]]
    spoilt = report["weights_not_finite"]
    lines.append(f"weights: {report['weights']}; {_count(spoilt, 'all are finite')}")
    for batch in report["micro_batches"]:
        loss, module = batch["loss"], batch["first_module_not_finite"] or "none"
        lines.append(f"micro-batch {batch['micro_step']}: loss {loss['computed']}, in the run {loss['recorded']}")
        lines.append(f"  first module whose output is not finite: {module}")
        lines.append(
            f"  gradient: norm {batch['gradient_norm']}; {_count(batch['gradients_not_finite'], 'all finite')}"
        )
    lines.append("each row alone, without dropout:")
    width = max((len(row["example_id"]) for row in report["rows"]), default=0)
    for row in report["rows"]:
        marks = ("" if row["finite"] else "  <- not finite") + "  (fills the batch, no target)" * row["filling"]
        lines.append(f"  {row['example_id']:<{width}}  {row['num_tokens']:>6} tokens  loss {row['loss']}{marks}")
    return "\n".join(lines)


def _count(found: Mapping[str, Any], none: str) -> str:
    if not found["count"]:
        return none
    more = ", …" * (found["count"] > len(found["first"]))
    return f"{found['count']} tensors are not finite: {', '.join(found['first'])}{more}"
