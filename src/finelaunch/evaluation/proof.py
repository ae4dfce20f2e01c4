"""The proof of an export: a fresh process loads what was written, and must find the same weights and logits.

Started as ``python -m finelaunch.evaluation.proof FOLDER EXPECTED [BASE]``; prints one JSON object.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from finelaunch.errors import BadInput, FinelaunchError
from finelaunch.evaluation.finished import load_finished

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

TEXTS = (
    "Is it raining?",
    "The film begins slowly, and nothing in its first hour says how well it will end.",
    "Which job was stopped at noon, and by whom?",
    "A fox ran over the hill, past the mill and the old bridge, down to the river, and nobody was there to see it.",
)
"""What is asked of a model before and after it is written."""
MAX_TOKENS = 48
RELATIVE_TOLERANCE = 1e-4
"""Of the largest logit: what adding an adapter's product to the weights may change by rounding in fp32."""


@dataclass(frozen=True)
class Expected:
    """What a model answers.

    Args:
        inputs: int64 ``[texts, tokens]`` each.
        logits: float32, those of all heads one after the other, padded positions left out.
        weights: SHA-256 over the names and bytes of all tensors.
    """

    inputs: Mapping[str, "torch.Tensor"]
    logits: "torch.Tensor"
    weights: str

    @property
    def tolerance(self) -> float:
        """The difference in logits that rounding explains."""
        return RELATIVE_TOLERANCE * float(self.logits.abs().max())

    def difference(self, logits: "torch.Tensor") -> float:
        """Return the largest difference of ``logits`` from these; infinite where they are of another shape."""
        if logits.shape != self.logits.shape:
            return float("inf")
        difference = float((logits - self.logits).abs().max())
        return difference if difference == difference else float("inf")


def inputs_for(model: Any, tokenizer: "PreTrainedTokenizerBase") -> dict[str, "torch.Tensor"]:
    """Return the texts as a model's inputs, cut to its positions."""
    positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS
    longest = max(min(MAX_TOKENS, positions // 2), 1)
    encoded = tokenizer(list(TEXTS), padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def expected_of(model: Any, inputs: Mapping[str, "torch.Tensor"]) -> Expected:
    """Return what ``model`` answers to ``inputs``, and the hash of its weights."""
    return Expected(dict(inputs), logits_of(model, inputs), weights_hash(model))


def logits_of(model: Any, inputs: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
    """Return what ``model`` answers to ``inputs``, as :class:`Expected` holds it."""
    import torch

    model.eval()
    given = {name: tensor.to(next(model.parameters()).device) for name, tensor in inputs.items()}
    with torch.no_grad():
        outputs = model(**given)
    real = given["attention_mask"].bool()
    found = []
    for name in sorted(name for name in outputs if name.endswith("logits")):
        logits = outputs[name].float()
        found.append((logits[real] if logits.shape[:2] == real.shape else logits).flatten().cpu())
    return torch.cat(found)


def weights_hash(model: Any) -> str:
    """Return the SHA-256 over the names and bytes of all that a model holds: parameters, buffers, scales of 4 bits."""
    import hashlib

    import torch

    digest = hashlib.sha256()
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def prove(folder: Path, expected: Expected, base: Path | None = None) -> float:
    """Load ``folder`` in a fresh process, and return the largest difference of its logits.

    The weights must be the same bit for bit; then the logits are, but for what another order of adding rounds.

    Args:
        folder: What was written.
        expected: What it is to answer.
        base: A copy of an adapter's base.

    Raises:
        FinelaunchError: It has other weights or answers otherwise, or cannot be loaded.
    """
    import torch
    from safetensors.torch import save_file

    with TemporaryDirectory(prefix="finelaunch-proof-") as place:
        file = Path(place, "expected.safetensors")
        tensors = {**expected.inputs, "logits": expected.logits}
        metadata = {"weights": expected.weights, "threads": str(torch.get_num_threads())}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata)
        command = [sys.executable, "-m", "finelaunch.evaluation.proof", str(folder), str(file)]
        done = subprocess.run([*command, *([str(base)] if base else [])], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if "error" in found:
            raise FinelaunchError(f"export: what was written cannot be loaded in a fresh process: {found['error']}")
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FinelaunchError(f"export: what was written cannot be loaded in a fresh process: {last:.300}") from None
    if found["weights"] != expected.weights:
        raise FinelaunchError("export: what was written has other weights in a fresh process than the model has")
    if not found["difference"] <= expected.tolerance:
        what = f"its logits differ by {found['difference']:.3g} from those of the model"
        raise FinelaunchError(f"export: what was written answers otherwise in a fresh process: {what}")
    return found["difference"]


def _main(folder: str, file: str, base: str | None = None) -> None:
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    torch.set_num_threads(int(metadata["threads"]))
    logits = tensors.pop("logits")
    try:
        model = load_finished(Path(folder), Path(base) if base else None).model
    except BadInput as error:
        print(json.dumps({"error": str(error)}))
        return
    found = expected_of(model, tensors)
    difference = Expected(tensors, logits, metadata["weights"]).difference(found.logits)
    print(json.dumps({"difference": difference, "weights": found.weights}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
