"""Verbs that use a finished run's model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from finelaunch.cli.app import AsJson, On, RunName, app
from finelaunch.errors import BadInput, Problem


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
