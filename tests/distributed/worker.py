"""One rank that makes several runs in one process: python worker.py JOBS.json, started by torchrun.

Every process pays seconds of imports, so a test puts all of its runs into one launch. Between two runs accelerate's
shared state is reset, which a real run never needs.
"""

import dataclasses
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock


def fault(name: str, stack: ExitStack) -> None:
    """Take one guard away, or make one thing differ, for the run that follows."""
    from finelaunch import pipeline
    from finelaunch.engines import Engine
    from finelaunch.training import arguments

    made = arguments.training_arguments
    deepspeed = Engine.deepspeed

    def cut_everything(engine):
        """Small models are not cut at all by default: DeepSpeed keeps tensors below 100,000 elements whole."""
        settings = deepspeed(engine)
        if engine.zero_stage == 3:
            settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings

    def changed(**values):
        def make(section, placed, checkpoints):
            with mock.patch.object(
                arguments,
                "TrainingArguments",
                lambda **given: real(**{**given, **values}),
            ):
                return made(section, placed, checkpoints)

        real = arguments.TrainingArguments
        return mock.patch.object(arguments, "training_arguments", make)

    def without_use_cpu(placed):
        from accelerate import PartialState

        PartialState(cpu=False, backend="gloo")

    def group_of_cpus(placed):
        from accelerate import PartialState

        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        PartialState(cpu=True, backend="gloo")

    def before_step_4(act):
        from finelaunch.training.guards import Guard

        begin = Guard.on_step_begin

        def on_step_begin(self, args, state, control, **others):
            begin(self, args, state, control, **others)
            if state.global_step == 3:
                act(self)

        return mock.patch.object(Guard, "on_step_begin", on_step_begin)

    def ticking_clock():
        from integration.test_budget import Ticks

        return mock.patch("finelaunch.training.pacing.time", Ticks())

    faults = {
        "nan loss on rank 1": lambda: before_step_4(poison_a_row_of_rank_1),
        "nan gradient": lambda: before_step_4(poison_a_gradient),
        "other weights on rank 1": lambda: before_step_4(part_ranks),
        "cut everything": lambda: mock.patch.object(Engine, "deepspeed", cut_everything),
        "ticking clock": ticking_clock,
        "own tokens only": lambda: changed(average_tokens_across_devices=False),
        "use_cpu": lambda: changed(use_cpu=True, deepspeed=None),
        "no use_cpu": lambda: changed(use_cpu=False),
        "group of cpus": lambda: mock.patch.object(pipeline, "start_engine", group_of_cpus),
        "group without cpu": lambda: mock.patch.object(pipeline, "start_engine", without_use_cpu),
        "bf16": lambda: changed(bf16=True),
        "half weights": lambda: mock.patch("finelaunch.methods.build.method_for", return_value=Halved()),
        "double accumulation": lambda: changed(gradient_accumulation_steps=2),
        "stage 2": lambda: mock.patch.object(
            Engine, "deepspeed", lambda engine: deepspeed(dataclasses.replace(engine, name="zero2"))
        ),
    }
    stack.enter_context(faults[name]())


def poison_a_row_of_rank_1(guard) -> None:
    """Make NaN of the embedding of a token that one row of the second rank's first micro-batch alone holds."""
    import torch

    batch = guard.sampler.global_batches(0)[3]
    row = int(guard.sampler.micro_batches(batch)[0][1::2][0])
    tokens = [set(guard.features.at("input_ids", max(other, ~other)).tolist()) for other in batch if other != row]
    token = next(
        one for one in guard.features.at("input_ids", row).tolist() if not any(one in other for other in tokens)
    )
    weight = guard.trainer.model.get_input_embeddings().weight
    if not hasattr(weight, "ds_id"):
        with torch.no_grad():
            weight[token] = float("nan")
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight], modifier_rank=0), torch.no_grad():
        if guard.ranks.is_first:
            weight[token] = float("nan")


def poison_a_gradient(guard) -> None:
    """Make NaN of a number of the first rank's gradient, with losses as they are."""
    if guard.ranks.is_first:
        guard.trainer.model.classifier.bias.register_hook(lambda gradient: gradient * float("nan"))


def part_ranks(guard) -> None:
    """Change the second rank's weights, as a gradient that was never reduced would."""
    import torch

    if not guard.ranks.is_first:
        with torch.no_grad():
            guard.trainer.model.classifier.bias += 1


class Halved:
    """A method that leaves the weights in bf16, as a checkpoint's own dtype would."""

    def quantization(self, precision):
        return None

    def apply(self, loaded):
        import torch

        return loaded.model.to(torch.bfloat16)

    def stages(self, model, num_steps):
        from finelaunch.methods.base import Stage

        return (Stage("", num_steps),)


def make_run(job: dict) -> dict:
    """Train or evaluate as ``job`` says and return what came of it."""
    from accelerate.state import AcceleratorState, GradientState
    from integration.runs import signalled

    from finelaunch.errors import FinelaunchError
    from finelaunch.launch.request import Request, choose
    from finelaunch.pipeline import Job, train_recipe
    from finelaunch.recipe.load import load_recipe, read_overrides
    from finelaunch.run.directory import RunDirectory
    from finelaunch.run.ranks import Ranks

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    ranks = Ranks.from_environment()
    given = read_overrides(job.get("overrides", ()))
    machine = choose(job["profile"], given["launch"], ranks, Request(), "cpu")
    with ExitStack() as stack:
        for name in job.get("faults", ()):
            fault(name, stack)
        if "stop" in job and not ranks.is_first:
            stack.enter_context(signalled(job["stop"], hook=job.get("stop_hook", "on_step_begin")))
        try:
            if "evaluate" in job:
                return evaluation(Path(job["evaluate"]), machine, ranks)
            recipe, document = load_recipe(job["recipe"], given["recipe"])
            run = RunDirectory(Path(job["folder"]), ranks.rank)
            train_recipe(Job(recipe, document, machine.profile, machine.document, machine.name, ranks), run)
        except FinelaunchError as error:
            return {"error": str(error), "exit_code": error.exit_code}
        except (ValueError, RuntimeError) as error:
            return {"error": f"{type(error).__name__}: {error}", "exit_code": None}
    return {"error": None}


def evaluation(run: Path, machine, ranks) -> dict:
    """Return figures and predictions of a finished run's model on its test split."""
    from finelaunch.evaluation import again
    from finelaunch.evaluation.evaluate import Evaluator
    from finelaunch.launch.place import on_processes
    from finelaunch.training.placement import settle, start_engine

    placement = settle(on_processes(ranks.world_size, machine.profile, machine.document), ranks)
    start_engine(placement)
    kept = {}
    measure = Evaluator.measure

    def keeping(*args, **named):
        kept["measured"] = measure(*args, **named)
        return kept["measured"]

    with mock.patch.object(Evaluator, "measure", keeping):
        figures, _ = again.evaluate_again(run / "model", None, placement, ranks)
    return {"error": None, "figures": figures, "predictions": kept["measured"].predictions}


def main() -> None:
    from finelaunch.run import log
    from finelaunch.training.placement import expose_gpus, stop_engine

    expose_gpus("cpu", alone=False)
    log.set_up(terminal=False)
    sys.path.append(str(Path(__file__).parent.parent))
    jobs = Path(sys.argv[1])
    outcomes = [make_run(job) for job in json.loads(jobs.read_text())]
    rank = os.environ.get("RANK", "0")
    jobs.with_suffix(f".{rank}.json").write_text(json.dumps(outcomes))
    stop_engine()


if __name__ == "__main__":
    main()
