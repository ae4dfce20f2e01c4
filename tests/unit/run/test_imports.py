"""What is loaded later than its library would load it."""

import subprocess
import sys

CODE = """
import sys
from finelaunch.run.imports import load_peft_alone
load_peft_alone()
import transformers.trainer, peft
early = "bitsandbytes" in sys.modules
from transformers.utils import is_bitsandbytes_available
from peft.import_utils import is_bnb_4bit_available
print(early, is_bitsandbytes_available(), is_bnb_4bit_available(), "bitsandbytes" in sys.modules)
import torch
from bitsandbytes.nn import Linear4bit
model = torch.nn.Sequential(Linear4bit(64, 64, compute_dtype=torch.float32))
model.is_loaded_in_4bit = True
adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"]))
print(type(adapted.base_model.model[0]).__module__)
"""


def test_bitsandbytes_is_loaded_when_it_is_needed():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["False True True True", "peft.tuners.lora.bnb"], done.stderr
