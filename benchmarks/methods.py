"""What the methods of fine-tuning cost, and what comes out: methods.py --data DIR [--only PART ...] [--page PAGE.md]

Each part makes one table of the page. Runs stay below ``--runs``: a finished one is not trained again, and a part that
was stopped goes on where it stopped. ``imdb`` and ``medquad`` are trained by the command and shown as ``finelaunch
compare`` does; ``memory`` loads and trains one and the same model in a process for each way of holding its weights.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import page

PARTS = ("imdb", "medquad", "memory")
IMDB = {"full": "minilm", "lora": "lora", "feature_extraction": "feature_extraction"}
IMDB |= {"gradual_unfreezing": "gradual_unfreezing"}
"""Recipe by name of the run; each method at its recipe's learning rate."""
IMDB_WORDS = [
    "task.max_length=128",
    "data.train.max_samples=2276",  # 2,048 to train on, a tenth held out
    "data.test.max_samples=1000",
    "training.num_train_epochs=1",
    "training.logging_steps=16",
]
BASE = """\
task: {name: causal_lm, max_length: 128}
model:
  init: scratch
  config:
    model_type: llama
    hidden_size: 256
    num_hidden_layers: 4
    num_attention_heads: 4
    num_key_value_heads: 4
    intermediate_size: 688
    max_position_embeddings: 256
  tokenizer: {vocab_size: 4000}
data:
  train: {path: early.jsonl, max_samples: 1667}
  test: {path: test.jsonl, max_samples: 300}
training: {global_batch_size: 8, learning_rate: 1e-3, num_train_epochs: 2, warmup_steps: 0.1, logging_steps: 25}
evaluation: {num_generations: 0}
"""
"""A decoder that begins with nothing and reads of one half of the topics."""
MEDQUAD = {
    "full": ["method.name=full", "training.learning_rate=3e-4"],
    "lora": ["method.name=lora", "method.target_modules=all-linear", "training.learning_rate=3e-3"],
    "qlora": ["method.name=qlora", "method.target_modules=all-linear", "training.learning_rate=3e-3"],
}
"""Low-rank matrices begin at nothing and learn at ten times the rate of whole weights."""
MEDQUAD_WORDS = ["data.train.path=late.jsonl", "data.train.max_samples=667", "training.logging_steps=10"]

LLAMA = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12}
LLAMA |= {"num_key_value_heads": 12, "vocab_size": 512}
SIZES = {
    "42m": LLAMA,
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""Llama shapes with random weights: memory and speed do not depend on what they hold."""
WAYS = {
    "full, 32-bit": ("full", "fp32"),
    "lora, 32-bit": ("lora", "fp32"),
    "lora, 16-bit": ("lora", "bf16"),
    "qlora, 4-bit": ("lora", "nf4"),
}
"""Method and how the base's weights are held."""
MEMORY_HEAD = "way", "weights", "ratio", "memory after load", "peak in training", "seconds a step", "tokens/s", "loss"
WARM_UP_STEPS = 2


def train(words: list[str], folder: Path, cwd: Path) -> None:
    """Train in ``folder``, unless that was done before."""
    from finelaunch.run.directory import RunDirectory

    if RunDirectory(folder).finished():
        print(f"{folder.name}: finished before", flush=True)
        return
    print(f"{folder.name}: {' '.join(words)}", flush=True)
    command = [sys.executable, "-m", "finelaunch", "train", *words, "--run-dir", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=cwd, env=environment, check=True, stdout=subprocess.DEVNULL)


def compared(folders: list[Path]) -> list[str]:
    """Return what ``finelaunch compare --markdown`` prints."""
    from finelaunch.reporting.compare import compare
    from finelaunch.reporting.compare_table import markdown_lines
    from finelaunch.run.directory import RunDirectory

    return markdown_lines(compare([RunDirectory(folder) for folder in folders]))


def imdb(data: Path, runs: Path, profile: str) -> list[str]:
    """Return the table of four methods on as many reviews."""
    paths = [f"data.{split}.path={data / 'imdb' / split}.parquet" for split in ("train", "test")]
    folders = []
    for name, recipe in IMDB.items():
        folders.append(runs / "imdb" / name)
        untuned = f"evaluation.base={json.dumps(name == 'full')}"  # the same for all of them: no weight has changed yet
        train([f"imdb/{recipe}", "--on", profile, *paths, *IMDB_WORDS, untuned], folders[-1], runs)
    return compared(folders)


def medquad(data: Path, runs: Path, profile: str) -> list[str]:
    """Return the table of full, lora and qlora from one base, on topics of which it has not read."""
    folder = runs / "medquad"
    if not (folder / "base.yaml").exists():
        write_topics(data / "medquad" / "medquad.jsonl", folder)
        (folder / "base.yaml").write_text(BASE)
    train(["base.yaml", "--on", profile], folder / "base", folder)
    for name, words in MEDQUAD.items():
        start = "model.name_or_path=base"
        train(["base.yaml", "--on", profile, start, *MEDQUAD_WORDS, *words], folder / name, folder)
    return compared([folder / name for name in MEDQUAD])


def write_topics(source: Path, folder: Path) -> None:
    """Write the rows of half of the topics to ``early.jsonl``, of the others to ``late.jsonl`` and ``test.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[str]] = {"early": [], "late": [], "test": []}
    for line in source.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question, answer = (" ".join((row[key] or "").split()) for key in ("question", "answer"))
        if question and answer:
            share = hashlib.sha256((row["focus"] or "").lower().encode()).digest()[0] / 256
            name = "early" if share < 0.5 else "late" if share < 0.9 else "test"
            rows[name].append(json.dumps({"id": row["id"], "prompt": question, "completion": answer}))
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def memory(runs: Path, size: str, steps: int) -> list[str]:
    """Return the table of ways to hold the weights of one model, a process for each."""
    folder = runs / f"memory-{size}"
    if not (folder / "model" / "config.json").exists():
        call_worker(folder, size, "write", 0)
    done = {name: call_worker(folder, size, name, steps) for name in WAYS}
    first = next(iter(done.values()))["weights"]
    lines = [f"| {' | '.join(MEMORY_HEAD)} |", "| --- |" + " ---: |" * (len(MEMORY_HEAD) - 1)]
    for name, own in done.items():
        mega = [f"{own[key] / 1e6:,.0f} MB" for key in ("weights", "loaded", "peak")]
        cells = [name, mega[0], f"{own['weights'] / first:.2f}", *mega[1:]]
        if own["losses"]:
            seconds, losses = own["seconds"], own["losses"]
            cells += [f"{seconds:.3g}", f"{own['tokens'] / seconds:,.0f}", f"{losses[0]:.3f} to {losses[-1]:.3f}"]
        else:
            cells[4:] = ["-"] * 4
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def call_worker(folder: Path, size: str, way: str, steps: int) -> dict:
    """Return what a process of its own has measured; once measured it is kept."""
    kept = folder / f"{re.sub(r'[^a-z0-9]+', '-', way)}.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"memory {size}: {way}", flush=True)
        words = [sys.executable, __file__, "--worker", str(folder), "--size", size, "--way", way, "--steps", str(steps)]
        subprocess.run(words, check=True)
    return json.loads(kept.read_text()) if way != "write" else {}


def worker(folder: Path, size: str, way: str, steps: int) -> None:
    """Hold the weights in one way, train some steps, and write down what it took."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if way == "write":
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SIZES[size], tie_word_embeddings=False)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with torch.device(device):
            model = transformers.LlamaForCausalLM(config).to(dtype)
        model.save_pretrained(folder / "model")
        return
    method, held = WAYS[way]
    rows, length = (4, 64) if device == "cpu" else (4, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    given: dict = {"dtype": torch.bfloat16 if held == "bf16" else torch.float32, "device_map": {"": device}}
    if held == "nf4":
        compute = torch.bfloat16 if device == "cuda" else torch.float32
        given["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model", **given)
    weights = model.get_memory_footprint()
    loaded = torch.cuda.memory_allocated() if device == "cuda" else resident_bytes()
    if held == "nf4":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if method == "lora":
        torch.manual_seed(1)
        config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        model = get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4 if method == "full" else 1e-3)
    torch.manual_seed(2)
    ids = torch.randint(SIZES[size]["vocab_size"], (rows, length), device=device)
    losses, seconds = [], []
    slow = device == "cpu" and held == "bf16"  # two orders of magnitude without AVX-512: loaded, not trained
    for _ in range(0 if slow else WARM_UP_STEPS + steps):
        since = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - since)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    figures = {
        "weights": weights,
        "loaded": loaded if device == "cuda" else loaded - before,
        "peak": torch.cuda.max_memory_allocated() if device == "cuda" else peak,
        "seconds": sorted(seconds[WARM_UP_STEPS:])[steps // 2] if seconds else None,
        "tokens": rows * length,
        "losses": losses,
    }
    name = f"{re.sub(r'[^a-z0-9]+', '-', way)}.json"
    (folder / name).write_text(json.dumps(figures))


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def machine(device: str) -> str:
    """Return what it ran on, and with which versions."""
    named = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        named = found[1] if found else named
    if device == "cuda":
        import torch

        named = torch.cuda.get_device_name()
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    return f"{named}, {', '.join(f'{name} {version(name)}' for name in packages)}"


def has_gpu() -> bool:
    """Return whether a GPU is there, asked in a process of its own: this one starts others that need its memory."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def main() -> None:
    """Make the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with imdb/train.parquet, medquad/medquad.jsonl and so on")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"), help="where runs are kept")
    parser.add_argument("--page", type=Path, help="page whose tables are replaced")
    parser.add_argument("--gpu-size", choices=SIZES, default="3b", help="of the part memory on a GPU")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of the part memory")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.worker, given.size, given.way, given.steps)
        return
    if given.data is None and set(given.only) - {"memory"}:
        parser.error("imdb and medquad need --data")
    runs, on_gpu = given.runs.resolve(), has_gpu()
    runs.mkdir(parents=True, exist_ok=True)
    device, profile = ("cuda", "gpu") if on_gpu else ("cpu", "cpu")
    size = given.gpu_size if on_gpu else "42m"
    about = machine(device)
    for part in given.only:
        if part == "memory":
            lines = memory(runs, size, given.steps)
            shape = f"Llama shape of {size.upper()} parameters, random weights, one process each"
            name = "methods-memory-gpu" if on_gpu else "methods-memory"
        else:
            lines = {"imdb": imdb, "medquad": medquad}[part](given.data.resolve(), runs, profile)
            shape, name = "as `finelaunch compare` prints it", f"methods-{part}"
        page.put(given.page, name, lines, f"make bench-methods, part {part}", f"{about}; {shape}")


if __name__ == "__main__":
    main()
