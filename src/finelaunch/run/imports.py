"""What is loaded otherwise than its library would do it, so that a run starts sooner."""

import importlib.util
import sys


def load_peft_alone() -> None:
    """Load peft without bitsandbytes, which transformers' Trainer would load with it in every run: 1.7 s of 10.

    peft takes it for one class at its top (``helpers.KappaTuneSelector``), which is not used here, and loads it where
    weights are in 4 or 8 bits anyway. Whatever else asks for bitsandbytes finds it as before.
    """
    if {"peft", "bitsandbytes"} & sys.modules.keys() or importlib.util.find_spec("peft") is None:
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # as where it is not installed
    try:
        import peft.import_utils
    finally:
        del sys.modules["bitsandbytes"]
    for found in (peft.import_utils.is_bnb_available, peft.import_utils.is_bnb_4bit_available):
        found.cache_clear()
