"""From the recipe's ``training`` section and a placement to ``TrainingArguments``: every argument stated once."""

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from finelaunch.training.placement import Placement
from finelaunch.training.section import TrainingSection

_FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}
ACTIVATION_CHECKPOINTING = (
    "activation_checkpointing" if "activation_checkpointing" in _FIELDS else "gradient_checkpointing"
)
"""The argument's name, which changed within transformers 5."""

OFFERED_AS_IS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "lr_scheduler_type",
    "optim",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "logging_steps",
    "eval_strategy",
    "save_strategy",
    "seed",
)
"""Fields of the section that are passed on under the same name."""


def training_arguments(
    section: TrainingSection, placement: Placement, checkpoints: Path, end_step: int | None = None
) -> TrainingArguments:
    """Return the arguments of the Trainer.

    Args:
        section: The recipe's section.
        placement: A settled placement.
        checkpoints: Where checkpoints go.
        end_step: Steps after which this Trainer ends, where another one goes on.
    """
    offered: dict[str, Any] = {name: getattr(section, name) for name in OFFERED_AS_IS}
    if end_step is not None:
        offered["max_steps"] = end_step
    if section.eval_steps is not None:
        offered["eval_steps"] = section.eval_steps
    if section.save_steps is not None:
        offered["save_steps"] = section.save_steps
    if placement.activation_checkpointing:
        offered[ACTIVATION_CHECKPOINTING] = True
        offered[f"{ACTIVATION_CHECKPOINTING}_kwargs"] = {"use_reentrant": False}  # reentrant fails under DDP with LoRA
    engine, on_cpu = placement.engine, placement.device == "cpu"
    if engine.is_distributed:  # its process group stands already, see start_engine
        offered["accelerator_config"] = {"use_configured_state": True}
        offered["ddp_timeout"] = placement.collective_timeout_seconds
    if engine.zero_stage is not None:
        offered["deepspeed"] = engine.deepspeed()
    if engine.name == "fsdp2":
        offered |= {"fsdp": True, "fsdp_config": engine.fsdp_config()}
    if not on_cpu:
        offered["tf32"] = placement.precision == "tf32"
    return TrainingArguments(
        output_dir=str(checkpoints),
        **offered,
        save_total_limit=None,  # rotation is ours: the Trainer's runs inside the save, before the new one counts
        logging_strategy="steps",
        per_device_train_batch_size=placement.per_device_batch_size,
        gradient_accumulation_steps=placement.gradient_accumulation_steps,
        per_device_eval_batch_size=placement.per_device_eval_batch_size,
        dataloader_num_workers=placement.dataloader_num_workers,
        use_cpu=on_cpu and engine.zero_stage is None,  # with it accelerate would run plain DDP instead of ZeRO
        bf16=placement.precision == "bf16",
        fp16=placement.precision == "fp16",
        full_determinism=section.deterministic,
        # What makes the loss and the resumed run independent of how a batch was cut; see the loss rule.
        label_names=["labels"],
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        logging_nan_inf_filter=False,
        ignore_data_skip=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to=[],
    )


def layer_classes(model: Any) -> list[str]:
    """Return the names of the classes of the model's layers, the units that FSDP2 cuts and gathers.

    Not the model's own ``_no_split_modules``: those of BERT hold the embeddings, which accelerate cuts by themselves,
    and torch refuses to cut a weight twice.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    return sorted(
        {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    )
