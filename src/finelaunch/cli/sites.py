"""Verbs about sites: what a machine or a cluster can do, and what it must be given beforehand."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from finelaunch.cli.app import AsJson, ClusterName, On, Overrides, RecipeName, RunDir, RunNameOption, app
from finelaunch.errors import EXIT_REQUIREMENT, BadInput, Problem


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe's path or name.")] = None,
    overrides: Overrides = None,
    on: On = None,
    cluster: ClusterName = None,
    name: RunNameOption = None,
    run_dir: RunDir = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="Run a short job that looks at the nodes, too.")] = False,
    wait: Annotated[float, typer.Option("--wait", min=1, help="Seconds that this job may wait for nodes.")] = 120.0,
    write: Annotated[bool, typer.Option("--write", help="Write a first version of the cluster profile.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --write: replace it; the old one is kept.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a recipe would run on a machine or a cluster; or write a first profile of a cluster."""
    if write:
        others = {
            "RECIPE": recipe,
            "--on": on,
            "--name": name,
            "--run-dir": run_dir,
            "--nodes": nodes,
            "--json": as_json,
        }
        _write_profile(cluster, force, [word for word, given in others.items() if given])
        return
    if force:
        raise BadInput(Problem("command line", "--force", "has no effect without --write", "", "leave it out"))
    from finelaunch.provision import verdicts
    from finelaunch.provision.doctor import examine, examine_nodes
    from finelaunch.provision.patient import find_patient

    patient = find_patient(recipe, overrides or (), on, cluster, name, run_dir)
    if nodes and patient.cluster is None:
        raise BadInput(Problem("command line", "--nodes", "no cluster is named", "", "add --cluster NAME"))
    found = []

    def tell(check: verdicts.Check) -> None:
        found.append(check)
        if not as_json:
            print(check, flush=True)

    for check in examine(patient):
        tell(check)
    if patient.cluster is not None and not nodes:
        tell(verdicts.unknown("nodes there", "nobody has asked them", "--nodes does, by a job of some seconds"))
    elif patient.cluster is not None:
        for check in examine_nodes(patient, patient.cluster, wait):
            tell(check)
    print(verdicts.as_json(found) if as_json else verdicts.totals(found))
    if verdicts.has_failed(found):
        raise typer.Exit(EXIT_REQUIREMENT)


def _write_profile(cluster: str | None, force: bool, others: list[str]) -> None:
    from finelaunch.provision.first_profile import (
        first_profile,
        profile_file,
        require_slurm,
        surroundings,
        write_profile,
    )
    from finelaunch.provision.site import read_site

    if others:
        raise BadInput(
            Problem("command line", word, "has no effect with --write", "", "leave it out") for word in others
        )
    if cluster is None:
        raise BadInput(Problem("command line", "--write", "no name is given to it", "", "add --cluster NAME"))
    profile_file(cluster)  # a bad name is said before Slurm is asked
    site = read_site()
    require_slurm(site)
    path, kept = write_profile(cluster, first_profile(cluster, site, surroundings()), force)
    print(f"{path}: written; read it through, then finelaunch doctor --cluster {cluster} --nodes")
    if kept is not None:
        print(f"the old one is kept in {kept}")


@app.command()
def prefetch(
    recipe: RecipeName,
    overrides: Overrides = None,
    download_only: Annotated[
        bool, typer.Option("--download-only", help="Leave the tokenising to a job; prints its command.")
    ] = False,
    cluster: ClusterName = None,
    lock: Annotated[Path | None, typer.Option("--lock", metavar="FILE", help="Write the lock here, too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch model, tokenizer and data from the hub and tokenise, for jobs on nodes without internet."""
    from finelaunch.launch.check import check
    from finelaunch.launch.cluster import VARIABLE, load_cluster
    from finelaunch.provision.locked import use_hub_home
    from finelaunch.recipe.load import read_overrides
    from finelaunch.run import log

    given = read_overrides(overrides or ())
    name = cluster or os.environ.get(VARIABLE)
    site = load_cluster(name, given.get("cluster"))[0] if name else None
    if site is not None and site.hf_home:
        use_hub_home(site.hf_home)  # before the check, which may read what was fetched
    loaded, document = check(recipe, given, None)
    log.set_up()
    log.quiet_libraries()
    from finelaunch.provision.command import tokenise_command
    from finelaunch.provision.prefetch import as_json as summary
    from finelaunch.provision.prefetch import prefetch as fetch

    fetched = fetch(loaded, document, download_only, lock)
    command = None if fetched.prepared else tokenise_command(document, site, name, os.environ.get("HF_HOME"))
    if as_json:
        print(json.dumps({**summary(fetched), "tokenise_command": command}))
        return
    for source in fetched.lock.sources:
        print(f"{source.key}: {source.repository} at {source.commit} ({len(source.files)} files)")
    if fetched.path:
        print(f"lock: {fetched.path}")
    print(f"tokenised: {fetched.prepared}" if fetched.prepared else f"to be tokenised, as a job: {command}")
