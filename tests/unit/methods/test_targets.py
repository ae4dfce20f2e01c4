"""The default targets of adapters are peft's, but for the shapes with a starting point of our own."""

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as OF_PEFT
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from finelaunch.methods.targets import ALL_LINEAR, PEFT_DEFAULTS, STARTING_POINTS, default_targets


def test_defaults_are_those_of_peft() -> None:
    # A pattern instead of names belongs to a model of several modes.
    known = {kind: names for kind, names in OF_PEFT.items() if kind in CONFIG_MAPPING_NAMES and isinstance(names, list)}
    ours = {kind: list(names) for kind, names in STARTING_POINTS.items()}
    assert {kind: default_targets(kind) for kind in known} == {**known, **ours}
    assert set(PEFT_DEFAULTS) | set(STARTING_POINTS) == set(known)
    assert not set(PEFT_DEFAULTS) & set(STARTING_POINTS)


def test_what_nobody_names_takes_every_matrix() -> None:
    assert default_targets("distilbert") == default_targets("modernbert") == ALL_LINEAR == "all-linear"


def test_an_answer_is_the_askers_own() -> None:
    default_targets("gpt2").append("lm_head")
    assert default_targets("gpt2") == ["c_attn", "c_proj"]
