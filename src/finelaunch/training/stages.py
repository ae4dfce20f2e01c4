"""A training in stages: each has a Trainer of its own, which begins from the checkpoint that the one before ended in.

DDP and ZeRO fix what they reduce when they wrap a model, so weights cannot be freed under them. A stage that was
reached and one that a stopped run continues with begin from the same files, so both take the same course.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finelaunch.methods.base import Stage


@contextmanager
def held(model: Any, stage: Stage) -> Iterator[None]:
    """Let ``model`` train what ``stage`` says; what it does not train is in evaluation mode and without gradient.

    Args:
        model: The plain model.
        stage: One without ``trained`` changes nothing.
    """
    if stage.trained is None:
        yield
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in stage.trained)
        parameter.grad = None
    hooks = [module.register_forward_pre_hook(_stay_in_evaluation) for module in held_modules(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def held_modules(model: Any) -> list[Any]:
    """Return the outermost modules that have parameters, none of which is trained."""
    found: list[Any] = []
    open_modules = [model]
    while open_modules:
        module = open_modules.pop()
        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and not any(trained):
            found.append(module)
        elif any(trained):
            open_modules += module.children()
    return found


def _stay_in_evaluation(module: Any, _: Any) -> None:
    if module.training:
        module.eval()


def in_groups(optimizer: Any, model: Any, stage: Stage) -> None:
    """Give every parameter its share of the learning rate, in groups of an optimizer that has not stepped yet.

    Args:
        optimizer: As the Trainer has made it, one group with weight decay and one without.
        model: The plain model, for the names of its parameters.
        stage: Its ``rates``.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups, optimizer.param_groups[:] = list(optimizer.param_groups), []
    for group in groups:
        by_rate: dict[float, list[Any]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(stage.rates.get(names[id(parameter)], 1.0), []).append(parameter)
        for rate in sorted(by_rate, reverse=True):
            optimizer.add_param_group({**group, "params": by_rate[rate], "lr": group["lr"] * rate})


def advance(scheduler: Any, step: int) -> None:
    """Put a schedule of the whole training to where ``step`` steps are done."""
    rates = [base * rule(step) for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler.load_state_dict(
        {**scheduler.state_dict(), "last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    )
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def load_weights_alone(engine: Any) -> None:
    """Have a DeepSpeed engine take nothing but weights from a checkpoint: the optimizer's state is of another stage."""
    load: Callable[..., Any] = engine.load_checkpoint
    engine.load_checkpoint = lambda *given, **named: load(*given, **named, load_module_only=True)


def part_with(trainer: Any) -> None:
    """Take what an engine has put around and into the model away, so that another Trainer can prepare it."""
    import torch
    from accelerate.state import AcceleratorState, GradientState

    wrapped = trainer.model_wrapped
    if hasattr(wrapped, "destroy"):  # DeepSpeed leaves its hooks on the parameters
        wrapped.destroy()
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    trainer.deepspeed = None  # the same engine once more
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.callback_handler.model = trainer.callback_handler.optimizer = trainer.callback_handler.lr_scheduler = None
    del wrapped
    gc.collect()  # DDP's reducer takes part in every backward pass for as long as it is there
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
