"""Post-processing alone: the usual loop and finelaunch's search on the same logits, in turns, in a process of its own.

Both begin with the logits of all windows in memory and the offsets in the form each keeps them in (the loop in a
``datasets.Dataset``, as the scripts have them; finelaunch in arrays), and end with a best span and a score of "no
answer" for every question. The questions are repeated until there are 512 windows or more: of a few, the time of a
call would be measured.

    python benchmarks/speed/postprocess.py LOGITS.npz ROWS.jsonl MODEL MAX_LENGTH ROUNDS
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from spans import MAX_ANSWER_LENGTH, postprocess

NUM_WINDOWS = 512


def main(logits: str, rows: str, model: str, max_length: int, rounds: int) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer

    from finelaunch.metrics.spans import merge_features
    from finelaunch.tasks.question_answering import QuestionAnswering, QuestionAnsweringSection

    tokenizer = AutoTokenizer.from_pretrained(model)
    examples = [json.loads(line) for line in Path(rows).read_text(encoding="utf-8").splitlines()]
    section = QuestionAnsweringSection(
        name="question_answering",
        max_length=max_length,
        stride=min(128, max_length // 3),
        max_question_length=min(64, max_length // 4),
        max_answer_length=MAX_ANSWER_LENGTH,
    )
    task = QuestionAnswering(section)
    features = task.encode(examples, tokenizer).features
    saved = np.load(logits)
    assert len(features) == len(saved["starts"]), f"{len(features)} windows, logits of {len(saved['starts'])}"
    times = -(-NUM_WINDOWS // len(features))
    starts, ends = (np.tile(saved[name], (times, 1)) for name in ("starts", "ends"))
    examples = [{**row, "id": f"{row['id']}-{time_}"} for time_ in range(times) for row in examples]
    features = task.encode(examples, tokenizer).features
    outputs = {"start_logits": torch.from_numpy(starts), "end_logits": torch.from_numpy(ends)}
    windows = Dataset.from_list([_window(features, index, examples) for index in range(len(features))])
    rows_of_loop = Dataset.from_list([{name: row[name] for name in ("id", "context")} for row in examples])

    def search() -> tuple[dict[str, str], dict[str, float]]:
        results = task.results(outputs, features, np.arange(len(features)))
        merged = merge_features(features.column("example"), results["score"], results["null_score"], len(examples))
        spans = results["span"][merged.feature].tolist()
        pairs = zip(examples, spans, strict=True)
        texts = {row["id"]: row["context"][start:end] for row, (start, end) in pairs}
        ids = (row["id"] for row in examples)
        return texts, dict(zip(ids, merged.no_answer_score.tolist(), strict=True))

    taken, found, usual = [], search(), None
    for _ in range(rounds):
        since = time.perf_counter()
        usual = postprocess(rows_of_loop, windows, starts, ends)
        between = time.perf_counter()
        found = search()
        taken.append((between - since, time.perf_counter() - between))
    assert usual is not None
    worse = [key for key, score in found[1].items() if score > usual[1][key] + 1e-4]
    assert not worse, f"the loop has found a better span for {worse[:3]}"
    equal = sum(text == usual[0][key] for key, text in found[0].items())
    print(json.dumps({"seconds": taken, "windows": len(windows), "questions": len(examples), "equal": equal}))


def _window(features: Any, index: int, examples: list) -> dict[str, Any]:
    """Return a window in the form that scripts keep it in: pairs of characters, None outside the context."""
    first = int(features.column("context_start")[index])
    starts, ends = (features.at(name, index).tolist() for name in ("offset_starts", "offset_ends"))
    pairs = [None] * first + list(zip(starts, ends, strict=True))
    return {"example_id": examples[int(features.column("example")[index])]["id"], "offset_mapping": pairs}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
