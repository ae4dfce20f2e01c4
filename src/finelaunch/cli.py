"""The command line. Verbs that only read a recipe load neither torch nor transformers."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from finelaunch import __version__
from finelaunch.errors import EXIT_FAILURE, EXIT_STOPPED, BadInput, FinelaunchError, Interrupted, Problem, Stopped
from finelaunch.run import files, signals
from finelaunch.run.ranks import is_lost_peer

app = typer.Typer(
    name="finelaunch",
    help="One recipe, every machine: fine-tuning that is verified, resumable and measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's path or name, such as imdb/smoke.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.learning_rate=3e-5.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run directory, a run's name below runs/, or its model.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="PROFILE", help="Launch profile; by default gpu if CUDA is there, else cpu."),
]
RunNameOption = Annotated[str | None, typer.Option("--name", help="Name of the run below runs/.")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run directory itself.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew; the old run is renamed, never deleted.")]
AllowChange = Annotated[
    list[str] | None, typer.Option("--allow-change", metavar="KEY", help="Continue although this key differs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"finelaunch {__version__}")
        raise typer.Exit


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Print this recipe's file.")] = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of a recipe.")] = False,
) -> None:
    """List the recipes that resolve from here, or print one."""
    from finelaunch.recipe.schema import recipe_json_schema
    from finelaunch.section.lookup import about, find, names, read_file

    if schema:
        print(json.dumps(recipe_json_schema(), indent=2))
        return
    if name is not None:
        path = find(name, "recipes")
        read_file(path)
        print(path.read_text(encoding="utf-8"), end="")
        return
    listed = {recipe: about(find(recipe, "recipes")) for recipe in names("recipes")}
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    width = max(map(len, listed), default=0)
    for recipe, comment in listed.items():
        print(f"{recipe:<{width}}  {comment}")


@app.command()
def validate(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    data: Annotated[bool, typer.Option("--data", help="Read and check all rows, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a recipe, at once."""
    from finelaunch.launch.check import check
    from finelaunch.preparation import read_splits
    from finelaunch.recipe.load import read_overrides
    from finelaunch.tasks import task_for

    loaded, document = check(recipe, read_overrides(overrides or ()), on)
    counts: dict[str, int] = {}
    if data:
        counts = {
            name: len(rows) for name, rows in read_splits(loaded.data, task_for(loaded.task), document).examples.items()
        }
    if as_json:
        print(json.dumps({"valid": True, "task": loaded.task.name, "num_examples": counts}))
        return
    rows = "; ".join(f"{name} {count:,} rows" for name, count in counts.items())
    print(f"{recipe}: valid ({loaded.task.name}{'; ' + rows if rows else ''})")


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe's path or name.")] = None,
    overrides: Overrides = None,
    on: On = None,
    name: RunNameOption = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    allow_change: AllowChange = None,
    as_json: AsJson = False,
    replay: Annotated[Path | None, typer.Option(metavar="FILE", help="Compute a failed step again instead.")] = None,
) -> None:
    """Fine-tune, evaluate before and after, and write a run directory; the same command continues an unfinished run."""
    if replay is not None or recipe is None:
        from finelaunch.launch.again import print_again

        print_again(replay, on, as_json, [recipe, overrides, name, run_dir, fresh, allow_change])
        return
    from finelaunch.launch.check import check
    from finelaunch.launch.place import place
    from finelaunch.launch.request import check_arithmetic, this_machine
    from finelaunch.launch.runs import begin_anew, run_directory
    from finelaunch.pipeline import Job, train_recipe
    from finelaunch.recipe.load import read_overrides
    from finelaunch.run import log
    from finelaunch.run.ranks import Ranks
    from finelaunch.section.lookup import find
    from finelaunch.training.placement import stop_engine

    ranks = Ranks.from_environment()
    log.set_up(terminal=ranks.is_first)
    given = read_overrides(overrides or ())
    loaded, document = check(recipe, given, on)
    machine = this_machine(on, given["launch"], ranks)
    run = run_directory(name, run_dir, find(recipe, "recipes"), ranks.rank)
    placement = place(loaded.training, machine.profile, machine.document)
    check_arithmetic(placement, os.environ, loaded.training.max_grad_norm)
    signals.stop_after(machine.profile.seconds_until_stop)
    if fresh and ranks.is_first and run.exists():
        begin_anew(run, loaded)
    log.say(f"run {run.path} {machine.sentence()}")
    job = Job(loaded, document, machine.profile, machine.document, machine.name, ranks)
    try:
        metrics = train_recipe(job, run, allow_change or ())
    except Stopped as stop:
        signals.ignore()
        if stop.agreed:
            stop_engine()
        raise
    signals.ignore()
    if ranks.is_launched:
        stop_engine()
    if not ranks.is_first:
        return
    if as_json:
        print(json.dumps(metrics))
        return
    from finelaunch.reporting.figures import print_table

    print_table(f"{loaded.task.name} on data.test" if metrics["eval"] else loaded.task.name, metrics)
    print(f"run directory: {run.path}")


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    allow_change: AllowChange = None,
    as_json: AsJson = False,
) -> None:
    """Print everything that launch would do: commands, engine settings, batch arithmetic, steps, memory, traffic."""
    from finelaunch.launch.check import check
    from finelaunch.launch.devices import default_on
    from finelaunch.launch.plan import make_plan
    from finelaunch.launch.profile import load_profile
    from finelaunch.recipe.load import read_overrides

    given = read_overrides(overrides or ())
    loaded, document = check(recipe, given, on)
    name = on or default_on()
    profile, profile_document, _ = load_profile(name, given["launch"])
    options = _may_change(allow_change)
    made = make_plan(recipe, overrides or (), loaded, document, name, profile, profile_document, options)
    print(made.as_json() if as_json else made.as_text())


@app.command()
def launch(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    name: RunNameOption = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    allow_change: AllowChange = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Where ranks meet; by default a free one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on the machine of a profile: starts its processes, watches them and answers for them."""
    if dry_run:
        ignored = {"--fresh": fresh, "--port": port is not None, "--name": name, "--run-dir": run_dir}
        if given_words := [word for word, given in ignored.items() if given]:
            what = f"{' and '.join(given_words)} have no effect with --dry-run, where run and port are symbols"
            raise BadInput(Problem("command line", "--dry-run", what, "", "leave them out"))
        plan(recipe, overrides, on, allow_change, as_json)
        return
    from finelaunch.launch.check import check
    from finelaunch.launch.devices import default_on, free_port, on_this_machine
    from finelaunch.launch.local import launch as start
    from finelaunch.launch.place import place
    from finelaunch.launch.plan import make_plan
    from finelaunch.launch.profile import load_profile
    from finelaunch.launch.runs import begin_anew, refuse_another_job, run_directory
    from finelaunch.recipe.load import read_overrides
    from finelaunch.run import log
    from finelaunch.run.lock import RunLock
    from finelaunch.run.ranks import Ranks
    from finelaunch.section.lookup import find

    if Ranks.from_environment().is_launched:
        what = "launch starts processes, and this one was started as one of several"
        raise BadInput(Problem("environment", "RANK", what, "", "use train here, or launch without torchrun"))
    given = read_overrides(overrides or ())
    loaded, document = check(recipe, given, on)
    profile_name = on or default_on()
    profile, profile_document, _ = load_profile(profile_name, given["launch"])
    profile = on_this_machine(profile, profile_document)
    if profile.target == "inprocess":
        if port is not None:
            what = f"{profile_name} is one process, which meets nobody"
            raise BadInput(Problem("command line", "--port", what, "", "leave it out"))
        train(recipe, overrides, profile_name, name, run_dir, fresh, allow_change, as_json)
        return
    port = free_port(port)
    options = _may_change(allow_change) + ["--json"] * as_json
    made = make_plan(recipe, overrides or (), loaded, document, profile_name, profile, profile_document, options)
    run = run_directory(name, run_dir, find(recipe, "recipes"))
    log.set_up()
    if fresh and run.exists():
        begin_anew(run, loaded)
    run.refuse_foreign_files()
    placement = place(loaded.training, profile, profile_document)
    with RunLock(run.lock):
        refuse_another_job(run, loaded, profile, placement, allow_change or ())
    sys.exit(start(made, profile, run, port))


@app.command()
def chaos(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: On = None,
    count: Annotated[int, typer.Option(min=1, help="Trials of each kind of fault.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="All draws follow from it.")] = 0,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="kill, signal, corruption, disk or chain; by default all.")
    ] = None,
    run_dir: RunDir = None,
    as_json: AsJson = False,
) -> None:
    """Prove that nothing is lost: kill, stop, damage and starve this recipe, continue it, compare the weights."""
    from finelaunch.chaos.session import prove

    sys.exit(prove(recipe, overrides or (), on, count, seed, fault or (), run_dir, as_json))


@app.command()
def evaluate(
    run: RunName,
    data: Annotated[Path | None, typer.Option("--data", help="Measure on this file instead of data.test.")] = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Measure a finished run's model, with the threshold that was chosen in training."""
    from finelaunch.evaluation.finished import find_model
    from finelaunch.run import log

    folder = find_model(run)
    from finelaunch.launch.request import settled_machine
    from finelaunch.run.ranks import Ranks

    ranks = Ranks.from_environment()
    log.set_up(terminal=ranks.is_first)
    placement = settled_machine(on, ranks)
    from finelaunch.evaluation.again import evaluate_again
    from finelaunch.reporting.figures import print_table
    from finelaunch.training.placement import stop_engine

    figures, source = evaluate_again(folder, data, placement, ranks)
    if ranks.is_launched:
        stop_engine()
    if not ranks.is_first:
        return
    if as_json:
        print(json.dumps(figures))
        return
    print_table(f"{figures['task']} on {source}", {"task": figures["task"], "eval": figures})


@app.command()
def predict(
    run: RunName,
    question: Annotated[str | None, typer.Option(help="Question answering: the question.")] = None,
    context: Annotated[str | None, typer.Option(help="Question answering: the passage.")] = None,
    text: Annotated[str | None, typer.Option(help="Classification: the text. Causal LM: the prompt.")] = None,
    file: Annotated[Path | None, typer.Option(help="JSONL with the same keys, one object a line.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Causal LM: 0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Causal LM: draw from so many tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Causal LM: draw from so much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Causal LM: seed of the draws.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Causal LM: longest answer in tokens.")] = 64,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Answer new inputs with a finished run's model."""
    from finelaunch.evaluation.finished import find_model
    from finelaunch.evaluation.predict import read_inputs
    from finelaunch.run import log

    folder = find_model(run)
    given = {"question": question, "context": context, "text": text}
    inputs = read_inputs({key: value for key, value in given.items() if value is not None}, file)
    from finelaunch.launch.request import settled_machine
    from finelaunch.run.ranks import Ranks

    ranks = Ranks.from_environment()
    if ranks.world_size > 1:
        what = f"started as one of {ranks.world_size} processes, and predict is one"
        raise BadInput(Problem("environment", "WORLD_SIZE", what, "", "start it without torchrun or accelerate"))
    log.set_up()
    placement = settled_machine(on, ranks)
    from finelaunch.evaluation.generate import Generation
    from finelaunch.evaluation.predict import predict_inputs

    how = Generation(max_new_tokens, temperature, top_k, top_p, seed)
    rows = predict_inputs(folder, inputs, how, placement)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False) if as_json or file else row["prediction"] or "(no answer)")


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="JSON: {id: answer}.")],
    data: Annotated[Path, typer.Option("--data", help="The SQuAD 2.0 JSON with the questions.")],
    task: Annotated[str, typer.Option("--task", help="The task; question_answering.")] = "question_answering",
    no_answer_probabilities: Annotated[
        Path | None, typer.Option("--no-answer-probabilities", help="JSON: {id: score}, higher means no answer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a predictions file as the official SQuAD 2.0 evaluation does."""
    from finelaunch.metrics.squad_files import score_files
    from finelaunch.reporting.figures import figure_text

    if task != "question_answering":
        raise BadInput(Problem("command line", "--task", f"{task!r} has no file format", "question_answering"))
    scored = score_files(predictions, data, no_answer_probabilities)
    for warning in scored.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(scored.metrics))
        return
    for key, value in scored.metrics.items():
        print(f"{key:<20} {figure_text(value)}")


def _may_change(keys: list[str] | None) -> list[str]:
    """Return the options that hand on what may change."""
    return [word for key in keys or () for word in ("--allow-change", key)]


def main() -> None:
    """Run the command line; every end that a user can act on is one message and an exit code."""
    from finelaunch.run.log import complain

    signals.listen()
    try:
        app(standalone_mode=True)
    except FinelaunchError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except Interrupted:
        complain("stopped")
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except Exception as error:
        stopped = signals.requested() and is_lost_peer(error)
        if not (stopped or files.is_full_disk(error)):
            raise
        complain("stopped" if stopped else files.full_disk_text(error))
        sys.exit(EXIT_STOPPED if stopped else EXIT_FAILURE)
