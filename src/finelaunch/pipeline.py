"""The whole of a run, from top to bottom.

prepared data -> base figures -> method -> training -> figures -> model and predictions in the run directory
"""

import json
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.errors import Stopped
from finelaunch.launch.plan import place
from finelaunch.launch.profile import Profile
from finelaunch.recipe.load import flatten
from finelaunch.recipe.schema import Recipe
from finelaunch.reporting.card import model_card
from finelaunch.run import log
from finelaunch.run.directory import RunDirectory, Stopwatch, differences, refuse_differences
from finelaunch.run.files import write_json, write_lines, write_text
from finelaunch.run.lock import RunLock
from finelaunch.section.document import Document
from finelaunch.tasks import task_for
from finelaunch.training.placement import Placement, move, settle

if TYPE_CHECKING:
    from finelaunch.evaluation.evaluate import Evaluator
    from finelaunch.preparation import Prepared
    from finelaunch.tasks.base import Measured


@dataclass(frozen=True)
class Job:
    """What is to be run, complete.

    Args:
        recipe: The recipe.
        document: The document behind it, for origins.
        profile: The launch profile.
        profile_document: The document behind that.
        profile_name: What the profile is called.
    """

    recipe: Recipe
    document: Document
    profile: Profile
    profile_document: Document
    profile_name: str

    def stated(self) -> dict[str, Any]:
        """Return all values, the profile's under ``launch``."""
        return {**self.recipe.model_dump(mode="json"), "launch": self.profile.model_dump(mode="json")}


def train_recipe(job: Job, run: RunDirectory, allow_change: Collection[str] = ()) -> dict[str, Any]:
    """Run ``job`` in ``run``: from the beginning, or from where an unfinished run of the same job stopped.

    Returns:
        The content of ``metrics.json``.

    Raises:
        BadInput: The recipe, the data, or a run that was begun otherwise; nothing is changed.
        RequirementMissing: A device, a package or something of the hub is missing.
        Stopped: Ctrl-C; the same command continues.
    """
    placement = place(job.recipe.training.global_batch_size, job.profile, job.profile_document)
    with RunLock(run.lock):
        if run.has_trained():
            before, after = dict(flatten(run.stated())), dict(flatten(job.stated()))
            refuse_differences(run, differences(before, after, allow_change))
            if run.finished():
                log.say(f"{run.path} is finished; --fresh trains anew, --name NAME beside it")
                return json.loads(run.metrics.read_text(encoding="utf-8"))
        else:
            run.begin(job.recipe.model_dump(mode="json"), job.profile.model_dump(mode="json"), sys.argv)
        run.note(profile=job.profile_name)
        log.set_up(run.log)
        run.record("started")
        try:
            return _stages(job, run, placement)
        except KeyboardInterrupt:
            run.record("stopped", signal="SIGINT")
            raise Stopped(f"stopped; the same command continues {run.path} from its newest checkpoint") from None
        except BaseException as error:
            run.record("failed", error=f"{type(error).__name__}: {error}")
            raise


def _stages(job: Job, run: RunDirectory, placement: Placement) -> dict[str, Any]:
    """Go through the stages of a run."""
    log.quiet_libraries()
    from finelaunch.evaluation.evaluate import Evaluator
    from finelaunch.evaluation.finished import save_model
    from finelaunch.methods import method_for
    from finelaunch.models.load import load_model
    from finelaunch.preparation import prepare
    from finelaunch.training.train import train

    recipe, seconds = job.recipe, Stopwatch()
    task = task_for(recipe.task)
    task_values = recipe.task.model_dump(mode="json")

    prepared = prepare(recipe.data, recipe.model, task, task_values, job.document)
    _report_data(run, prepared, seconds.lap("prepare"))

    placement = settle(placement)
    loaded = load_model(
        recipe.model,
        task.auto_class,
        task.model_config(prepared.facts),
        prepared.tokenizer,
        recipe.task.max_length,
        recipe.training.seed,
    )
    base = {"name": recipe.model.name_or_path, "init": recipe.model.init, "fingerprint": loaded.fingerprint}
    unused = {"newly_initialised": list(loaded.newly_initialised), "unused": list(loaded.unused)}
    run.note(model={**base, **({} if recipe.model.init == "scratch" else unused)})
    task.prepare(loaded.model)
    model = method_for(recipe.method).apply(loaded.model)
    move(model, placement.device)
    evaluator = Evaluator(
        task, prepared.tokenizer, prepared.facts, placement.per_device_eval_batch_size, placement.precision
    )
    seconds.lap("load")

    metrics: dict[str, Any] = {"task": recipe.task.name, "base": None}
    if recipe.evaluation.base and "test" in prepared.splits:
        metrics["base"] = _base_figures(job, run, evaluator, model, prepared)
        seconds.lap("base")

    last: dict[str, Any] = {}

    def on_validation(trained: Any) -> dict[str, Any]:
        last["measured"] = measure_split(evaluator, trained, prepared, "validation")
        return last["measured"].metrics

    trained = train(
        recipe.training,
        placement,
        task,
        model,
        prepared.tokenizer,
        prepared.splits["train"].features,
        on_validation,
        run,
    )
    seconds.lap("train")

    if trained.evaluated_step != trained.figures["steps"]:
        on_validation(trained.model)
    validation = last["measured"]
    threshold = validation.metrics.get("threshold")
    save_model(run, trained.model, prepared.tokenizer, task_values, prepared.facts, base, threshold)
    measured = validation
    if "test" in prepared.splits:
        measured = measure_split(evaluator, trained.model, prepared, "test", threshold)
    further = _further(recipe, measured)
    predictions = _with_generations(recipe, task, trained.model, prepared, measured)
    seconds.lap("evaluate")

    write_lines(run.predictions, predictions)
    metrics |= {
        "validation": validation.metrics,
        "eval": {**measured.metrics, **further} if "test" in prepared.splits else None,
        "train": trained.figures,
        "seconds": seconds.seconds,
    }
    write_json(run.metrics, metrics)
    _write_card(job, run, metrics)
    run.record("finished")
    return metrics


def measure_split(
    evaluator: "Evaluator", model: Any, prepared: "Prepared", name: str, threshold: float | None = None
) -> "Measured":
    """Return the figures of ``model`` on the split ``name``."""
    split = prepared.splits[name]
    return evaluator.measure(model, split.examples, split.features, threshold)


def _report_data(run: RunDirectory, prepared: "Prepared", elapsed: float) -> None:
    """Write what is known of the data, and say it in a line a split."""
    write_json(run.data_report, prepared.report)
    about = ("path", "subset", "split", "revision", "source", "licence", "citation", "fingerprint", "num_examples")
    splits = prepared.report["splits"]
    run.note(data={name: {key: split.get(key) for key in about} for name, split in splits.items()})
    for name, split in splits.items():
        lengths = split["tokens_per_feature"]
        spread = f"{lengths['mean']:.0f} tokens on average, {lengths['max']} at most"
        say = f"data.{name}: {split['num_examples']:,} examples, {split['num_features']:,} features, {spread}"
        log.say(f"{say} ({split['path']})")
    for warning in prepared.report["warnings"]:
        if run.warn(warning):
            log.warn(warning)
    log.say(f"data {'found in the cache' if prepared.from_cache else 'prepared'} in {elapsed:.1f} s")


def _base_figures(
    job: Job, run: RunDirectory, evaluator: "Evaluator", model: Any, prepared: "Prepared"
) -> dict[str, Any]:
    """Return the figures of the untuned model on data.test, kept in the manifest for a continued run."""
    kept = run.read_manifest().get("base_figures")
    if kept is not None:
        return kept
    threshold = measure_split(evaluator, model, prepared, "validation").metrics.get("threshold")
    figures = measure_split(evaluator, model, prepared, "test", threshold).metrics
    run.note(base_figures=figures)
    return figures


def _further(recipe: Recipe, measured: "Measured") -> dict[str, Any]:
    """Return the figures of the metrics that the recipe names beyond the task's own."""
    from finelaunch.evaluation.metrics import further_metrics

    return further_metrics(recipe.evaluation.metrics, *map(list, measured.references))


def _with_generations(
    recipe: Recipe, task: Any, model: Any, prepared: "Prepared", measured: "Measured"
) -> list[dict[str, Any]]:
    """Return the predictions; those of a causal LM with the first prompts answered."""
    count = recipe.evaluation.num_generations
    if recipe.task.name != "causal_lm" or not count:
        return measured.predictions
    from finelaunch.evaluation.generate import Generation, generate

    rows = measured.predictions[:count]
    prompts = [task.prompt_ids(row["prompt"], prepared.tokenizer) for row in rows]
    how = Generation(max_new_tokens=recipe.evaluation.max_new_tokens)
    answers = generate(model, prepared.tokenizer, prompts, how)
    answered = [{**row, "prediction": answer} for row, answer in zip(rows, answers, strict=True)]
    return answered + measured.predictions[count:]


def _write_card(job: Job, run: RunDirectory, metrics: dict[str, Any]) -> None:
    """Write ``model/README.md``: what it is, from what, on what, and how good."""
    write_text(run.model / "README.md", model_card(run.path.name, job.stated(), run.read_manifest(), metrics))


def run_directory(name: str | None, run_dir: Path | None, recipe_file: Path) -> RunDirectory:
    """Return the run directory: ``run_dir``, else ``runs/NAME``, by default ``runs/<folder>-<stem>`` of the recipe."""
    if run_dir is not None:
        return RunDirectory(run_dir)
    folder = recipe_file.resolve().parent.name
    return RunDirectory(Path("runs", name or f"{folder}-{recipe_file.stem}"))
