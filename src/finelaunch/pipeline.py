"""The whole of a run, from top to bottom.

prepared data -> base figures -> method -> training -> figures -> model and predictions in the run directory
"""

import json
import socket
import sys
from collections.abc import Collection
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from finelaunch.errors import FinelaunchError, Interrupted, LostPeer, Stopped
from finelaunch.launch.job import Job
from finelaunch.launch.place import place
from finelaunch.launch.runs import refuse_another_job, refuse_changed_base, refuse_changed_data
from finelaunch.methods.limits import scratch_note
from finelaunch.recipe.load import flatten
from finelaunch.reporting.card import model_card
from finelaunch.reporting.rows import report_data, report_forgotten
from finelaunch.run import log, signals
from finelaunch.run.directory import RunDirectory, Stopwatch
from finelaunch.run.files import read_lines, write_json, write_lines, write_text
from finelaunch.run.imports import load_peft_alone
from finelaunch.run.lock import STALE_SECONDS, RunLock
from finelaunch.run.ranks import Gate, gather, on_first
from finelaunch.run.stops import has_peer_stopped
from finelaunch.run.watch import watching
from finelaunch.slurm.history import note_start
from finelaunch.tasks import task_for
from finelaunch.training.checkpoints import FREE_KEYS, Identity
from finelaunch.training.faults import name_fault
from finelaunch.training.manifest import newest_checkpoint
from finelaunch.training.placement import Placement, move, settle, start_engine
from finelaunch.training.seats import refuse_shared_gpus, take_seats

if TYPE_CHECKING:
    from finelaunch.evaluation.evaluate import Evaluator
    from finelaunch.preparation import Prepared
    from finelaunch.tasks.base import Measured
    from finelaunch.training.train import Trained


FINISHED = "finished"
"""The first rank's word to the others where there is nothing left to do."""

SETTLING_SECONDS = 30.0
"""What the first rank does with the run directory beside waiting for its lock, before it meets the others."""


def train_recipe(job: Job, run: RunDirectory, allow_change: Collection[str] = ()) -> dict[str, Any]:
    """Run ``job`` in ``run``: from the beginning, or from where an unfinished run of the same job stopped.

    Every rank calls it. The first one holds the run directory, prepares the data and writes; the others wait for it.

    Returns:
        The content of ``metrics.json``; empty on the other ranks.

    Raises:
        BadInput: The recipe, the data, or a run that was begun otherwise; nothing is changed.
        RequirementMissing: A device, a package or something of the hub is missing.
        Stopped: By a signal; the same command continues.
    """
    signals.raise_again()
    placement = place(job.recipe, job.profile, job.profile_document)
    waits_for_lock = job.profile.target == "slurm"
    first_comes_within = STALE_SECONDS + SETTLING_SECONDS if waits_for_lock else 0.0
    gate = Gate(job.ranks, placement.collective_timeout_seconds, first_comes_within)
    if not job.ranks.is_first:
        return _follow(job, run, placement, gate)
    recipe, launch = job.recipe.model_dump(mode="json"), job.profile.model_dump(mode="json")
    with RunLock(run.lock, waits=waits_for_lock) as lock:
        changed = refuse_another_job(run, job.recipe, job.profile, placement, allow_change)
        if changed and not run.finished():
            permitted = [key for key in changed if key not in FREE_KEYS]
            run.restate(recipe, launch, changed, keeps_base=not permitted)
            if permitted:
                text = f"{', '.join(permitted)}: changed, so what follows is not what the run would have been"
                log.warn(text) if run.warn(text) else None
        if run.has_trained():
            if run.finished():
                gate.meet()
                gate.dismiss(FINISHED)
                log.say(f"{run.path} is finished; --fresh trains anew, --name NAME beside it")
                return json.loads(run.metrics.read_text(encoding="utf-8"))
        else:
            run.begin(recipe, launch, sys.argv)
        run.note(profile=job.profile_name)
        log.set_up(run.log)
        run.record("started", host=socket.gethostname())
        signals.before_end(lambda why: _end_from_outside(run, lock, why))
        try:
            if job.profile.target == "slurm":
                note_start(run, job.profile_name)
            gate.meet()
            return _stages(job, run, placement, gate, allow_change)
        except Interrupted as stop:
            raise _stopped(job, run, str(stop), stop.agreed) from None
        except BaseException as error:
            named = _named(error, run, placement)
            if has_peer_stopped(named):
                raise _stopped(job, run, str(signals.requested()), agreed=False) from None
            with suppress(OSError):
                victim = {"victim": True} if isinstance(named, LostPeer) else {}
                run.record("failed", error=str(named) if named else f"{type(error).__name__}: {error}", **victim)
            if named is not None:
                raise named from None
            raise


def _stopped(job: Job, run: RunDirectory, reason: str, agreed: bool) -> Stopped:
    """Return the end of the first rank where a run was stopped; written down where the disk still takes it."""
    with suppress(OSError):
        run.record("stopped", signal=reason)
    return Stopped(_how_it_continues(job, run, reason), agreed, reason)


def _how_it_continues(job: Job, run: RunDirectory, stop: str) -> str:
    """Say what the same command will do after a stop."""
    newest = newest_checkpoint(run.checkpoints)
    begun = [event["from_step"] for event in read_lines(run.events) if event.get("event") == "training"]
    if stop == "max_run_seconds" and (newest is None or newest.step == (begun or [0])[-1]):
        limits = f"launch.max_run_seconds {job.profile.max_run_seconds}, launch.stop_grace_seconds "
        return f"{limits}{job.profile.stop_grace_seconds}: stopped before a step was done; raise the first of them"
    if job.recipe.training.resume == "never":
        return f"stopped by {stop}; the same command begins again in {run.path} (training.resume: never)"
    if newest is None:
        return f"stopped by {stop} before anything was trained; the same command continues in {run.path}"
    return f"stopped by {stop}; step {newest.step} is saved, and the same command continues from it in {run.path}"


def _end_from_outside(run: RunDirectory, lock: RunLock, why: str) -> None:
    """Leave the run as any stop does, where the main thread cannot."""
    run.record("stopped", signal=why)
    lock.__exit__()


def _follow(job: Job, run: RunDirectory, placement: Placement, gate: Gate) -> dict[str, Any]:
    """Run ``job`` on a rank that is not the first."""
    with signals.held():
        load_peft_alone()
        log.quiet_libraries()  # loads what it needs while the first rank prepares
    gate.meet()
    try:
        word = gate.wait()
    except LostPeer as error:
        if has_peer_stopped(error):
            raise Stopped(f"stopped by {signals.requested()}; {error}", reason=str(signals.requested())) from None
        raise
    if word == FINISHED:
        return {}
    log.set_up(run.log, terminal=False)
    log.capture(run.log)
    try:
        return _stages(job, run, placement, gate, ())
    except Interrupted as stop:
        raise Stopped(f"stopped by {stop}", stop.agreed, str(stop)) from None
    except BaseException as error:
        named = _named(error, run, placement)
        if has_peer_stopped(named):
            raise Stopped(f"stopped by {signals.requested()}; {named}", reason=str(signals.requested())) from None
        if named is not None:
            raise named from None
        raise


def _named(error: BaseException, run: RunDirectory, placement: Placement) -> FinelaunchError | None:
    """Return ``error`` as a sentence, where it can be one."""
    try:
        name_fault(error, run, placement)
    except FinelaunchError as named:
        return named
    return None


def _stages(
    job: Job, run: RunDirectory, placement: Placement, gate: Gate, allow_change: Collection[str]
) -> dict[str, Any]:
    """Go through the stages of a run, on every rank."""
    with signals.held():
        load_peft_alone()
        log.quiet_libraries()
        from finelaunch.evaluation.metrics import require_metrics
        from finelaunch.preparation import prepare

    recipe, seconds = job.recipe, Stopwatch()
    require_metrics(recipe.evaluation.metrics)
    task = task_for(recipe.task)
    prepared = prepare(recipe.data, recipe.model, task, recipe.task.model_dump(mode="json"), job.document)
    if run.writes:
        refuse_changed_data(run, prepared, allow_change)
        _note_other_validation(run, prepared)
        report_data(run, prepared, seconds.lap("prepare"))
    gate.open()

    signals.hold()
    placement = settle(placement, job.ranks)
    refuse_shared_gpus(placement, gate)
    start_engine(placement)
    if job.ranks.is_launched:
        run.note(ranks=take_seats(placement, job.ranks, job.profile.target == "slurm"))
    with watching(run.log, placement.collective_timeout_seconds):
        return _train(job, run, placement, task, prepared, allow_change, seconds)


def _note_other_validation(run: RunDirectory, prepared: "Prepared") -> None:
    """Say where the run goes on with other validation rows: figures on them do not compare with those before."""
    before = run.read_manifest().get("data", {}).get("validation", {}).get("fingerprint") if run.has_trained() else None
    if before not in (None, prepared.report["splits"]["validation"]["fingerprint"]):
        run.record("validation_changed")
        text = (
            "data.validation has other rows than before: the best step and patience go by what is measured from here on"
        )
        log.warn(text) if run.warn(text) else None


def _train(
    job: Job,
    run: RunDirectory,
    placement: Placement,
    task: Any,
    prepared: "Prepared",
    allow_change: Collection[str],
    seconds: Stopwatch,
) -> dict[str, Any]:
    """Load, train and measure the model, all ranks together."""
    from finelaunch.evaluation.answers import answers_of
    from finelaunch.evaluation.evaluate import Evaluator
    from finelaunch.methods.build import build_model, needs_whole
    from finelaunch.models.adapters import built_whole
    from finelaunch.training.arguments import training_arguments
    from finelaunch.training.train import train

    recipe, ranks = job.recipe, job.ranks
    arguments = training_arguments(recipe.training, placement, run.checkpoints)  # before the model: ZeRO-3 cuts it
    with built_whole() if needs_whole(recipe.model, recipe.method) else nullcontext():
        built = build_model(
            recipe.model,
            recipe.method,
            task,
            prepared.tokenizer,
            prepared.facts,
            recipe.task.max_length,
            recipe.training.seed,
            placement.precision,
        )
    model = built.model
    on_first(ranks, lambda: refuse_changed_base(run, built.fingerprint))
    identity = _identity(job, prepared, built.fingerprint)
    if run.writes:
        known = run.read_manifest().get("fingerprints", [])
        run.note(fingerprints=list(dict.fromkeys([*known, identity.fingerprint])))
    run.note(model=built.facts(), method=recipe.method.model_dump(mode="json"))
    if (text := scratch_note(recipe.method, recipe.model)) and run.warn(text):
        log.warn(text)
    evaluator = Evaluator(
        task, prepared.tokenizer, prepared.facts, placement.per_device_eval_batch_size, placement.precision, ranks
    )
    seconds.lap("load")
    signals.check()

    last: dict[str, Any] = {"base": gather(run.read_manifest().get("base_figures") if run.writes else None)[0]}

    def measure_base(model: Any) -> None:
        last["base"] = _base_figures(evaluator, model, prepared, run)
        run.note(base_figures=last["base"])
        seconds.lap("base")

    wants_base = recipe.evaluation.base and "test" in prepared.splits and last["base"] is None
    if wants_base and not placement.engine.shards_weights:
        move(model, placement)
        measure_base(model)

    def on_begin(model: Any, is_untrained: bool) -> None:
        seconds.lap("set_up")
        if wants_base and is_untrained and placement.engine.shards_weights:
            measure_base(model)

    def on_validation(trained: Any) -> dict[str, Any]:
        last["measured"] = measure_split(evaluator, trained, prepared, "validation")
        return last["measured"].metrics

    trained = train(
        recipe.training,
        arguments,
        placement,
        ranks,
        task,
        built.method,
        model,
        prepared.tokenizer,
        prepared.splits["train"],
        on_validation,
        on_begin,
        answers_of(recipe.evaluation, task, prepared, run, built.fingerprint),
        run,
        identity,
        allow_change,
        job.profile.stop_grace_seconds,
    )
    seconds.lap("train")
    try:
        trained.check()
        metrics = _results(job, run, prepared, task, trained, evaluator, last, built.base, seconds)
    except Interrupted:
        trained.save()
        raise
    run.record("finished")
    return metrics


def _results(
    job: Job,
    run: RunDirectory,
    prepared: "Prepared",
    task: Any,
    trained: "Trained",
    evaluator: "Evaluator",
    last: dict[str, Any],
    base: dict[str, Any],
    seconds: Stopwatch,
) -> dict[str, Any]:
    """Measure what was trained, and write the model, its predictions and figures; empty on all ranks but the first."""
    from finelaunch.evaluation.answers import with_answers
    from finelaunch.evaluation.finished import save_model
    from finelaunch.evaluation.metrics import further_metrics

    recipe = job.recipe
    tuned = trained.measured
    if not trained.is_measured:
        last["measured"] = measure_split(evaluator, tuned, prepared, "validation")
    validation = last["measured"]
    threshold = validation.metrics.get("threshold")
    if run.writes:
        values, method = recipe.task.model_dump(mode="json"), recipe.method.model_dump(mode="json")
        stated = (values, prepared.facts, base, threshold, method)
        save_model(run, trained.model, trained.weights, prepared.tokenizer, *stated)
    measured = validation
    if "test" in prepared.splits:
        measured = measure_split(evaluator, tuned, prepared, "test", threshold)
    further = further_metrics(recipe.evaluation.metrics, *map(list, measured.references))
    predictions = with_answers(recipe.evaluation, task, trained.model, prepared.tokenizer, measured)
    seconds.lap("evaluate")
    if not run.writes:
        return {}

    _warn_if_worse(run, last["base"], measured.metrics)
    write_lines(run.predictions, predictions)
    metrics = {
        "task": recipe.task.name,
        "base": last["base"],
        "validation": validation.metrics,
        "eval": {**measured.metrics, **further} if "test" in prepared.splits else None,
        "train": trained.figures,
        "seconds": seconds.seconds,
    }
    metrics |= report_forgotten(run, metrics)
    write_json(run.metrics, metrics)
    _write_card(run, metrics)
    return metrics


def _identity(job: Job, prepared: "Prepared", base: str) -> Identity:
    """Return what is trained, as checkpoints state it."""
    splits = prepared.report["splits"]
    recipe = dict(flatten(job.recipe.model_dump(mode="json")))
    return Identity(recipe, {name: splits[name]["fingerprint"] for name in ("train",)}, base)


def measure_split(
    evaluator: "Evaluator", model: Any, prepared: "Prepared", name: str, threshold: float | None = None
) -> "Measured":
    """Return the figures of ``model`` on the split ``name``."""
    split = prepared.splits[name]
    return evaluator.measure(model, split.examples, split.features, threshold)


def _base_figures(evaluator: "Evaluator", model: Any, prepared: "Prepared", run: RunDirectory) -> dict[str, Any]:
    """Return the figures of the untuned model on data.test, and note what the validation split takes."""
    seconds = Stopwatch()
    threshold = measure_split(evaluator, model, prepared, "validation").metrics.get("threshold")
    run.note(base_validation_seconds=round(seconds.lap("validation"), 3))
    return measure_split(evaluator, model, prepared, "test", threshold).metrics


def _warn_if_worse(run: RunDirectory, base: dict[str, Any] | None, tuned: dict[str, Any]) -> None:
    """Say it where training made the model worse."""
    if base is not None and tuned["loss"] > base["loss"]:
        text = f"the tuned model's loss {tuned['loss']:.4g} is worse than the untuned one's {base['loss']:.4g}"
        if run.warn(text):
            log.warn(f"{text}: too few steps, divergence or overfitting, see docs/troubleshooting.md")


def _write_card(run: RunDirectory, metrics: dict[str, Any]) -> None:
    """Write ``model/README.md``: what it is, from what, on what, and how good."""
    write_text(run.model / "README.md", model_card(run.path.name, run.stated(), run.read_manifest(), metrics))
