"""Verbs that use a finished run's model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from finelaunch.cli.app import AsJson, On, RunName, app
from finelaunch.errors import BadInput, Problem

Base = Annotated[
    Path | None, typer.Option("--base", metavar="DIR", help="A copy of the adapter's base, if it is not where it was.")
]


@app.command()
def evaluate(
    run: RunName,
    data: Annotated[Path | None, typer.Option("--data", help="Measure on this file instead of data.test.")] = None,
    base: Base = None,
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

    figures, source = evaluate_again(folder, data, placement, ranks, base)
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
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run directory, a run's name below runs/, or its model.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="RUN", help="Instead of RUN: adapters that take turns over one base."),
    ] = None,
    question: Annotated[str | None, typer.Option(help="Question answering: the question.")] = None,
    context: Annotated[str | None, typer.Option(help="Question answering: the passage.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Classification: the text. Causal LM: the prompt, or the beginning of a text.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="JSONL with the same keys, one object a line.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Causal LM: 0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Causal LM: draw from so many tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Causal LM: draw from so much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Causal LM: seed of the draws.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Causal LM: longest answer in tokens.")] = 64,
    base: Base = None,
    on: On = None,
    as_json: AsJson = False,
) -> None:
    """Answer new inputs with a finished run's model."""
    from finelaunch.evaluation.finished import find_model
    from finelaunch.evaluation.predict import read_inputs
    from finelaunch.run import log

    refuse_both(run, adapter or [])
    folders = {name: find_model(name) for name in ([run] if run else adapter or [])}
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
    from finelaunch.evaluation.predict import predict_adapters, predict_inputs

    how = Generation(max_new_tokens, temperature, top_k, top_p, seed)
    if run:
        rows = predict_inputs(folders[run], inputs, how, placement, base)
    else:
        rows = predict_adapters(folders, inputs, how, placement, base)
    for row in rows:
        name = "" if run else f"{row['adapter']}: "
        print(json.dumps(row, ensure_ascii=False) if as_json or file else name + _in_words(row["prediction"]))


def _in_words(prediction: str | list[str]) -> str:
    """Return a prediction as it is printed: an answer, a label, or several labels."""
    if isinstance(prediction, list):
        return ", ".join(prediction) or "(no label)"
    return prediction or "(no answer)"


def refuse_both(run: str | None, adapters: list[str]) -> None:
    """Refuse a run beside adapters, neither of them, or an adapter named twice.

    Raises:
        BadInput: One of these is given.
    """
    if (run is None) == (not adapters):
        what = "a model is needed" if run is None else "a model is given twice, as RUN and by --adapter"
        raise BadInput(Problem("command line", "RUN", what, "RUN, or --adapter RUN once or more"))
    twice = sorted({name for name in adapters if adapters.count(name) > 1})
    if twice:
        raise BadInput(Problem("command line", "--adapter", f"{', '.join(twice)} is given twice", "each adapter once"))


@app.command()
def export(
    run: RunName,
    merge: Annotated[bool, typer.Option("--merge", help="Write the adapter and its base as one plain model.")] = False,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where to; by default RUN/export/adapter or merged.")
    ] = None,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Take a finished run's model out of it, loaded in a fresh process and proven to be the same."""
    from finelaunch.evaluation.finished import find_model
    from finelaunch.run import log

    folder = find_model(run)
    log.set_up()
    from finelaunch.evaluation.export import export_model
    from finelaunch.models.adapters import is_adapter
    from finelaunch.reporting.card import merged_card

    kind = "merged" if merge else "adapter" if is_adapter(folder) else "model"
    home = folder.parent if folder.name == "model" else folder
    exported = export_model(folder, to or home / "export" / kind, merge, base, merged_card)
    print(json.dumps(exported.facts()) if as_json else exported.sentence())
