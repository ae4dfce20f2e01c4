"""Verbs that train, or say what training would do."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finelaunch.cli.app import (
    AllowChange,
    AsJson,
    ClusterName,
    Fresh,
    On,
    Overrides,
    RecipeName,
    RunDir,
    RunNameOption,
    app,
)
from finelaunch.errors import BadInput, Problem, Stopped
from finelaunch.run import signals
from finelaunch.section.document import Document

if TYPE_CHECKING:
    from finelaunch.launch.plan import Site


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
    from finelaunch.provision.locked import pinned
    from finelaunch.provision.staging import staged
    from finelaunch.recipe.load import read_overrides
    from finelaunch.run import log
    from finelaunch.run.ranks import Ranks
    from finelaunch.section.lookup import find
    from finelaunch.slurm.history import restart_count
    from finelaunch.slurm.ranks import adopt_ranks, in_job
    from finelaunch.slurm.submission import profile_name_of
    from finelaunch.training.placement import stop_engine

    adopt_ranks(on)
    ranks = Ranks.from_environment()
    log.set_up(terminal=ranks.is_first)
    given = read_overrides(overrides or ())
    loaded, document = pinned(*check(recipe, given, on))
    machine = this_machine(on, given["launch"], ranks)
    if keys := list(given["cluster"].values):
        what = "has no effect on train, which runs where it is started"
        raise BadInput(Problem("command line", f"cluster.{keys[0]}", what, "", "use it with launch or plan"))
    run = run_directory(name, run_dir, find(recipe, "recipes"), ranks.rank)
    machine = replace(machine, name=profile_name_of(run, machine.name))
    is_slurm = machine.profile.target == "slurm"
    with in_job(run, machine.profile, ranks):
        placement = place(loaded, machine.profile, machine.document)
        check_arithmetic(placement, os.environ, loaded.training.max_grad_norm)
        signals.stop_after(machine.profile.seconds_until_stop)
        if fresh and is_slurm and restart_count():
            log.say("--fresh is for the first start of a job; this one goes on")
        elif fresh and ranks.is_first and run.exists():
            begin_anew(run, loaded)
        log.say(f"run {run.path} {machine.sentence()}")
        os.environ.update(staged(run, loaded) if is_slurm else {})
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
    cluster: ClusterName = None,
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
    site = _site(cluster, given["cluster"], name, profile.target)
    options = _may_change(allow_change)
    made = make_plan(recipe, overrides or (), loaded, document, name, profile, profile_document, options, site)
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
    cluster: ClusterName = None,
    wait: Annotated[bool, typer.Option("--wait", help="On Slurm: follow the run to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and do nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train on the machine of a profile: starts its processes, watches them and answers for them."""
    if dry_run:
        ignored = {"--fresh": fresh, "--wait": wait, "--port": port is not None, "--name": name, "--run-dir": run_dir}
        if given_words := [word for word, given in ignored.items() if given]:
            what = f"{' and '.join(given_words)} have no effect with --dry-run, where run and port are symbols"
            raise BadInput(Problem("command line", "--dry-run", what, "", "leave them out"))
        plan(recipe, overrides, on, allow_change, as_json, cluster)
        return
    from finelaunch.launch.check import check
    from finelaunch.launch.devices import default_on, free_port, on_this_machine
    from finelaunch.launch.job import Job
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
    run = run_directory(name, run_dir, find(recipe, "recipes"))
    log.set_up()
    site = _site(cluster, given["cluster"], profile_name, profile.target)
    options = _may_change(allow_change)
    if site is not None:
        from finelaunch.cli.submitting import submit_run

        if port is not None:
            what = "ranks of a Slurm job meet at a port that follows from the job's number"
            raise BadInput(Problem("command line", "--port", what, "", "leave it out"))
        job = Job(loaded, document, profile, profile_document, profile_name)
        made = make_plan(
            recipe, overrides or (), loaded, document, profile_name, profile, profile_document, options, site
        )
        sys.exit(submit_run(job, made, site, run, fresh, allow_change or (), wait, as_json))
    if wait:
        what = f"has no effect on {profile_name}, where launch always waits"
        raise BadInput(Problem("command line", "--wait", what, "", "leave it out, or use --on slurm_…"))
    profile = on_this_machine(profile, profile_document)
    if profile.target == "inprocess":
        if port is not None:
            what = f"{profile_name} is one process, which meets nobody"
            raise BadInput(Problem("command line", "--port", what, "", "leave it out"))
        train(recipe, overrides, profile_name, name, run_dir, fresh, allow_change, as_json)
        return
    port = free_port(port)
    options += ["--json"] * as_json
    made = make_plan(recipe, overrides or (), loaded, document, profile_name, profile, profile_document, options)
    if fresh and run.exists():
        begin_anew(run, loaded)
    run.refuse_foreign_files()
    placement = place(loaded, profile, profile_document)
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


def _site(cluster: str | None, overrides: Document, profile_name: str, target: str) -> "Site | None":
    """Return the cluster profile of a launch on Slurm; None elsewhere.

    Raises:
        BadInput: The cluster profile, or a cluster where none is used.
    """
    from finelaunch.launch.cluster import load_cluster

    if target == "slurm":
        return load_cluster(cluster, overrides)
    given = ["--cluster"] * (cluster is not None) + [f"cluster.{key}" for key in overrides.values]
    if given:
        what = f"has no effect on {profile_name}, which is no profile for Slurm"
        raise BadInput(Problem("command line", given[0], what, "", "leave it out, or use --on slurm_…"))
    return None


def _may_change(keys: list[str] | None) -> list[str]:
    """Return the options that hand on what may change."""
    return [word for key in keys or () for word in ("--allow-change", key)]
