"""The ``training`` section of a recipe: hyperparameters and rhythm, under the names of ``TrainingArguments``.

Only fields that change the result or its rhythm are taken. Every other field of ``TrainingArguments``, and every name
that transformers 5 removed, is answered with the place where it belongs; a test holds that none is forgotten.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from finelaunch.section.base import Section, SettingError

_PROFILE = "it speaks of the machine: use --on PROFILE with {}"
_OURS = "not offered: {}"

MACHINE_SETTINGS = {
    "bf16": "launch.precision=bf16",
    "fp16": "launch.precision=fp16",
    "tf32": "launch.precision",
    "bf16_full_eval": "launch.precision",
    "fp16_full_eval": "launch.precision",
    "use_cpu": "launch.device=cpu",
    "per_device_train_batch_size": "launch.per_device_batch_size; the recipe states training.global_batch_size",
    "per_device_eval_batch_size": "launch.per_device_eval_batch_size",
    "gradient_checkpointing": "launch.activation_checkpointing",
    "gradient_checkpointing_kwargs": "launch.activation_checkpointing",
    "activation_checkpointing": "launch.activation_checkpointing",
    "activation_checkpointing_kwargs": "launch.activation_checkpointing",
    "dataloader_num_workers": "launch.dataloader_num_workers",
}
_ENGINE = "it speaks of the machine and follows from the launch profile (--on PROFILE), never from a recipe"
_LOADER = _OURS.format("the sampler and its loader are finelaunch's, the same order on every machine")
_FIXED = _OURS.format("it would make results depend on how a batch was cut, or hide a fault")
_HUB = _OURS.format("runs do not push to the hub; upload the model folder of a finished run")
_LOG = _OURS.format("logs go to train_log.jsonl and tensorboard of the run directory")
_EVALUATION = _OURS.format("evaluation is finelaunch's, exact for any batch size; see the evaluation section")
_SPEED = _OURS.format("a speed setting that is not part of a recipe")

ANSWERS: dict[str, str] = {
    **{name: _PROFILE.format(place) for name, place in MACHINE_SETTINGS.items()},
    "gradient_accumulation_steps": "it follows from training.global_batch_size and launch.per_device_batch_size",
    # removed in transformers 5
    "evaluation_strategy": "renamed in transformers 5: use training.eval_strategy",
    "warmup_ratio": "removed in transformers 5: use training.warmup_steps, where a value below 1 is a ratio",
    "logging_dir": "removed in transformers 5; tensorboard logs go to the run directory",
    "overwrite_output_dir": "removed in transformers 5: use finelaunch train --fresh",
    "group_by_length": "removed in transformers 5: use training.length_window_batches; rows are grouped by default",
    "save_safetensors": "removed in transformers 5: weights are always written as safetensors",
    "no_cuda": "renamed use_cpu in transformers 5; it speaks of the machine: use --on cpu",
    "include_inputs_for_metrics": "removed in transformers 5; metrics see the examples anyway",
    "push_to_hub_token": "removed in transformers 5; " + _HUB,
    "train_batch_size": "use training.global_batch_size",
    "batch_size": "use training.global_batch_size",
    "epochs": "use training.num_train_epochs",
    "lr": "use training.learning_rate",
    # where it stands elsewhere
    "output_dir": "use --run-dir DIR or --name NAME",
    "run_name": "use --name NAME",
    "resume_from_checkpoint": "use training.resume",
    "full_determinism": "use training.deterministic",
    "data_seed": "use training.seed; the order of the data is drawn from it",
    **dict.fromkeys(
        [
            "fsdp",
            "fsdp_config",
            "deepspeed",
            "accelerator_config",
            "parallelism_config",
            "local_rank",
            "ddp_backend",
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "log_on_each_node",
            "save_on_each_node",
        ],
        _ENGINE,
    ),
    **dict.fromkeys(
        [
            "dataloader_drop_last",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "remove_unused_columns",
            "label_names",
            "train_sampling_strategy",
            "length_column_name",
        ],
        _LOADER,
    ),
    **dict.fromkeys(
        [
            "average_tokens_across_devices",
            "auto_find_batch_size",
            "logging_nan_inf_filter",
            "ignore_data_skip",
            "label_smoothing_factor",
            "restore_callback_states_from_checkpoint",
            "save_only_model",
        ],
        _FIXED,
    ),
    **dict.fromkeys(
        [
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ],
        _HUB,
    ),
    **dict.fromkeys(
        [
            "logging_strategy",
            "logging_first_step",
            "log_level",
            "log_level_replica",
            "disable_tqdm",
            "report_to",
            "project",
            "trackio_space_id",
            "trackio_bucket_id",
            "trackio_static_space_id",
            "debug",
            "skip_memory_metrics",
            "include_num_input_tokens_seen",
        ],
        _LOG,
    ),
    **dict.fromkeys(
        [
            "eval_delay",
            "prediction_loss_only",
            "eval_on_start",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "batch_eval_metrics",
            "do_train",
            "do_eval",
            "do_predict",
        ],
        _EVALUATION,
    ),
    **dict.fromkeys(
        [
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "use_liger_kernel",
            "liger_kernel_config",
            "use_cache",
            "torch_empty_cache_steps",
        ],
        _SPEED,
    ),
    **dict.fromkeys(
        ["optim_args", "optim_target_modules", "lr_scheduler_kwargs", "neftune_noise_alpha"],
        _OURS.format("it changes the result in ways that no test of finelaunch covers"),
    ),
    "enable_jit_checkpoint": _OURS.format("its ranks do not agree on the step that they save"),
    "greater_is_better": "it follows from training.metric_for_best_model, since losses and perplexity are better lower",
    "early_stopping": "use training.early_stopping_patience",
    "patience": "use training.early_stopping_patience",
}


BUDGET_STEPS = 10
"""How many steps are measured before ``time_budget_minutes`` says how many there are."""


class TrainingSection(Section):
    """How to train; nothing of where."""

    answers: ClassVar[Mapping[str, str]] = ANSWERS

    global_batch_size: int = Field(gt=0, le=2**20, description="samples per optimizer step, over all devices")
    learning_rate: float = Field(gt=0, description="peak learning rate, such as 2e-5")
    num_train_epochs: float = Field(default=3.0, gt=0, description="passes over data.train")
    max_steps: int = Field(default=-1, ge=-1, description="optimizer steps in all; -1: by num_train_epochs")
    time_budget_minutes: float | None = Field(
        default=None,
        gt=0,
        description="minutes of training: the first steps are measured, and no more are made than fit; null: no limit",
    )
    warmup_steps: float = Field(
        default=0.0, ge=0, description="steps of linear warm-up; below 1: that share of all steps"
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt", "cosine_with_restarts"
    ] = Field(default="linear", description="shape of the learning rate over the steps")
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "sgd",
        "adafactor",
        "adamw_bnb_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
    ] = Field(default="adamw_torch_fused", description="optimizer; those of bitsandbytes need the extra qlora")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay, not on biases and norms")
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW beta 1")
    adam_beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW beta 2")
    adam_epsilon: float = Field(default=1e-8, gt=0, description="AdamW epsilon")
    max_grad_norm: float = Field(default=1.0, ge=0, description="clip the gradient's global norm; 0: never")
    length_window_batches: int = Field(
        default=50, ge=1, description="global batches in whose window rows are sorted by length; 1: no grouping"
    )
    logging_steps: int = Field(default=10, ge=1, description="optimizer steps between two log lines")
    eval_strategy: Literal["no", "steps", "epoch"] = Field(
        default="epoch", description="when to measure data.validation"
    )
    eval_steps: int | None = Field(default=None, ge=1, description="optimizer steps between evaluations (steps)")
    save_strategy: Literal["no", "steps", "epoch"] = Field(default="epoch", description="when to write a checkpoint")
    save_steps: int | None = Field(default=None, ge=1, description="optimizer steps between checkpoints (steps)")
    save_total_limit: int | None = Field(
        default=2, ge=1, description="newest checkpoints kept, beside the best by metric_for_best_model; null: all"
    )
    metric_for_best_model: str = Field(
        default="loss", description="figure on data.validation by which the best step is known, such as f1; no prefix"
    )
    load_best_model_at_end: bool = Field(
        default=False, description="keep the weights of the best step, which is saved; false: those of the last one"
    )
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="end after so many evaluations without a better figure; null: never"
    )
    early_stopping_threshold: float = Field(
        default=0.0, ge=0, description="by how much a figure must be better to count for early_stopping_patience"
    )
    seed: int = Field(default=42, ge=0, lt=2**31, description="seed of weights, order and dropout")
    deterministic: bool = Field(default=False, description="deterministic kernels, slower on a GPU")
    resume: str = Field(
        default="auto", description="auto: newest checkpoint of the run that verifies; never; or a checkpoint's path"
    )
    verify: Literal["sha256", "size"] = Field(
        default="sha256", description="what a checkpoint is checked by before it is used; size: faster, sees less"
    )

    def faults(self) -> Iterator[SettingError]:
        """Yield rhythms without a strategy and strategies without a rhythm, and warm-ups that do not fit."""
        for kind, strategy, steps in (
            ("eval", self.eval_strategy, self.eval_steps),
            ("save", self.save_strategy, self.save_steps),
        ):
            if strategy == "steps" and steps is None:
                yield SettingError(f"{kind}_steps", "is missing", "a number of steps", f"{kind}_strategy is 'steps'")
            if strategy != "steps" and steps is not None:
                remedy = f"set {kind}_strategy: steps, or leave {kind}_steps out"
                yield SettingError(f"{kind}_steps", f"has no effect with {kind}_strategy: {strategy}", "", remedy)
        yield from self._selection_faults()
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            remedy = f"such as {int(self.warmup_steps)}, or 0.1 for a tenth of all steps"
            yield SettingError("warmup_steps", f"{self.warmup_steps} is no whole number of steps", "", remedy)
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            what = "has no effect with lr_scheduler_type: constant"
            yield SettingError("warmup_steps", what, "", "use constant_with_warmup, or leave warmup_steps out")
        if self.max_steps == 0:
            yield SettingError("max_steps", "0 trains nothing", "-1 for num_train_epochs, or 1 and more")
        if self.time_budget_minutes is not None and 0 < self.max_steps <= BUDGET_STEPS:
            what = f"has no effect with max_steps {self.max_steps}: {BUDGET_STEPS} steps are measured first"
            yield SettingError("time_budget_minutes", what, "", "leave it out, or raise max_steps")
        if 0 < self.max_steps <= self.warmup_steps:
            what = f"{self.warmup_steps:g} is not less than max_steps {self.max_steps}"
            yield SettingError("warmup_steps", what, "", "lower it, or raise max_steps")

    def _selection_faults(self) -> Iterator[SettingError]:
        """Yield settings of the best step that have nothing to choose by, or nothing to act on."""
        if self.eval_strategy == "no":
            given = {
                "load_best_model_at_end": self.load_best_model_at_end,
                "early_stopping_patience": self.early_stopping_patience is not None,
                "metric_for_best_model": self.metric_for_best_model != "loss",
            }
            for key in (key for key, is_given in given.items() if is_given):
                what = "needs evaluations, and there are none with eval_strategy: no"
                yield SettingError(key, what, "", "set eval_strategy: epoch, or steps with eval_steps; or leave it out")
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            what = "has no effect without early_stopping_patience"
            yield SettingError("early_stopping_threshold", what, "", "set early_stopping_patience, or leave it out")
