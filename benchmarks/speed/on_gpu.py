"""On a GPU: shapes of usual size with random weights on rows of real lengths, how fast, and how near to the peak.

MFU is the share of the machine's matrix peak, measured in the same run, that the real tokens' arithmetic takes: 6
operations a weight and token that multiplies (the output layer included, embeddings that are looked up not), and 12 a
layer, width and position of the row for attention (half of that where it is causal). Padding counts for nothing.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contestants import environment
from figures import MEASURES, Results, rates, ratio
from processes import Process
from rows import Work
from turns import Bench

BERT = {"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
BERT |= {"intermediate_size": 3072, "vocab_size": 30522}
LLAMA = {"model_type": "llama", "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
LLAMA |= {"num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "max_position_embeddings": 2048}


@dataclass(frozen=True)
class Model:
    """A shape and the rows it is measured on.

    Args:
        title: What it is called in the table.
        task: ``imdb``, ``squad`` or ``medquad``.
        config: Its config; the weights are random.
        length: Most tokens of a row.
    """

    title: str
    task: str
    config: Mapping[str, Any]
    length: int


MODELS = {
    "distilbert": Model("DistilBERT, IMDb", "imdb", {"model_type": "distilbert", "vocab_size": 30522}, 512),
    "bert": Model("BERT-base, SQuAD 2.0", "squad", BERT, 384),
    "gpt2": Model("GPT-2, MedQuAD", "medquad", {"model_type": "gpt2"}, 1024),
    "llama": Model("Llama shape of 1.2B, MedQuAD", "medquad", LLAMA, 1024),
}
HEAD = "model", "contestant", "samples/s", "real tokens/s", "MFU", "peak memory", "ours over it"


def flops_per_token(told: Mapping[str, Any], length: float) -> float:
    """Return the operations of a training step per real token.

    Args:
        told: ``multiplied`` weights, ``layers``, ``width`` and ``is_causal`` of the model.
        length: Mean tokens of a row.
    """
    attention = 12 * told["layers"] * told["width"] * length * (0.5 if told["is_causal"] else 1.0)
    return 6.0 * told["multiplied"] + attention


def weights_of(model: Any) -> tuple[int, int]:
    """Return the parameters of a model, and how many of them are embeddings that only are looked up."""
    import torch

    output = model.get_output_embeddings()
    tied = None if output is None else output.weight
    embedded = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    looked_up = sum(weight.numel() for weight in embedded if weight is not tied)
    return sum(parameter.numel() for parameter in model.parameters()), looked_up


def matmul_peak(device: str, size: int, rounds: int) -> float:
    """Return the operations a second of the fastest of several products of two square matrices."""
    import torch

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        since = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - since)
    return 2.0 * size**3 / best


def measure(bench: Bench, model: Model, work: Work) -> list[str]:
    """Measure a model with every contestant, and return its lines of the table.

    Args:
        bench: Runs the contestants.
        model: Which.
        work: Its rows and weights.
    """
    label, device = bench.folder / f"{work.folder.name}-peak", bench.options.device
    own = environment(bench.folder, device, bench.options.threads)
    Process([sys.executable, __file__, str(work.model), device], own, label, bench.options.timeout, "the peak").run()
    told = json.loads(label.with_name(f"{label.name}.log").read_text().splitlines()[-1])
    return lines(model.title, told, Results(work.name, trained=bench.rates_of(work)))


def lines(title: str, told: Mapping[str, Any], results: Results) -> list[str]:
    """Return the lines of a model.

    Args:
        title: What it is called.
        told: What :func:`main` has printed.
        results: The trainings of the contestants.
    """
    found, samples = [], MEASURES["samples"]
    for name, runs in results.trained.items():
        speed, tokens = (statistics.median(rates(seen.probe)[kind] for seen in runs) for kind in (0, 1))
        rows, _, real = map(sum, zip(*runs[0].probe["inputs"], strict=True))
        share = tokens * flops_per_token(told, real / rows) / told["peak"]
        held = runs[-1].probe.get("peak_device_bytes") or runs[-1].peak_bytes
        over = "-" if name == "ours" else str(ratio(results, samples, name))
        cells = [title, name, f"{speed:,.2f}", f"{tokens:,.0f}", f"{share:.1%}", f"{held / 1e9:.2f} GB", over]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main(folder: Path, device: str) -> None:
    """Print what the model in ``folder`` multiplies and what the device can do, in a process of its own."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    is_causal = config.model_type in ("gpt2", "llama")
    with torch.device("meta"):
        model = (AutoModelForCausalLM if is_causal else AutoModel).from_config(config)
    size, rounds = (8192, 30) if device == "cuda" else (1024, 10)
    total, looked_up = weights_of(model)
    told = {"multiplied": total - looked_up, "layers": config.num_hidden_layers, "width": config.hidden_size}
    print(json.dumps({**told, "is_causal": is_causal, "peak": matmul_peak(device, size, rounds)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
