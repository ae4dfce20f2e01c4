"""Which matrices an adapter sits on where a recipe does not name them.

Said without loading a model or peft: the plan needs it, too. GPT-2's and LLaMA's shapes take all matrices of the
attention (in GPT-2 ``c_proj`` is the name of the feed-forward block's second matrix as well); other architectures take
peft's choice, held against the installed peft by a test; what peft has no choice for takes every matrix but the head.
"""

ALL_LINEAR = "all-linear"
"""peft's word for every linear layer outside the head."""

_GPT2 = ("c_attn", "c_proj")
_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj")
_QUERY_VALUE = ("query", "value")
_Q_V = ("q_proj", "v_proj")

STARTING_POINTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode"), _GPT2),
    **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _LLAMA),
}
"""Architectures with a starting point of our own."""

PEFT_DEFAULTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm"), _QUERY_VALUE),
    "deberta-v2": ("query_proj", "value_proj"),
    "deberta": ("in_proj",),
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    "blip-2": ("q", "v", "q_proj", "v_proj"),
    **dict.fromkeys(("bart", "opt", "gptj", "gpt_neo", "llama4", "stablelm"), _Q_V),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), ("query_key_value",)),
    "mpt": ("Wqkv",),
    "codegen": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "nemotron_h": _LLAMA,
    "rwkv": ("key", "value", "receptance", "output"),
}
"""peft's choice for LoRA, for the other architectures of transformers. Source: peft 0.21, utils/constants.py."""


def default_targets(model_type: str) -> list[str] | str:
    """Return the names that ``target_modules: default`` stands for: endings of module names, or ``all-linear``.

    Args:
        model_type: The architecture, by transformers' name.
    """
    names = STARTING_POINTS.get(model_type) or PEFT_DEFAULTS.get(model_type)
    return list(names) if names else ALL_LINEAR
