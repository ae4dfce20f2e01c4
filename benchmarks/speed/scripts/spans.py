"""Answers from logits by the loop that question-answering scripts commonly have: 20 best starts with 20 best ends."""

import collections

import numpy as np

NUM_BEST, MAX_ANSWER_LENGTH = 20, 30


def postprocess(examples, features, start_logits, end_logits):
    """Return the best span and the score of "no answer" of every question.

    Args:
        examples: Rows with ``id`` and ``context``.
        features: Rows with ``example_id`` and ``offset_mapping``, None outside the context.
        start_logits: float32 [features, tokens].
        end_logits: float32 [features, tokens].
    """
    per_example = collections.defaultdict(list)
    for index, feature in enumerate(features):
        per_example[feature["example_id"]].append((index, feature["offset_mapping"]))
    texts, no_answer = {}, {}
    for example in examples:
        null_score, candidates = None, []
        for index, offsets in per_example[example["id"]]:
            starts, ends = start_logits[index], end_logits[index]
            null = float(starts[0] + ends[0])
            null_score = null if null_score is None else min(null_score, null)
            best_starts = np.argsort(starts)[: -NUM_BEST - 1 : -1].tolist()
            best_ends = np.argsort(ends)[: -NUM_BEST - 1 : -1].tolist()
            for start in best_starts:
                for end in best_ends:
                    if start >= len(offsets) or end >= len(offsets) or not offsets[start] or not offsets[end]:
                        continue
                    if end < start or end - start + 1 > MAX_ANSWER_LENGTH:
                        continue
                    candidates.append(
                        {
                            "offsets": (offsets[start][0], offsets[end][1]),
                            "score": starts[start] + ends[end],
                            "start_logit": starts[start],
                            "end_logit": ends[end],
                        }
                    )
        kept = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:NUM_BEST]
        if not kept:
            kept = [{"offsets": (0, 0), "score": np.float32(-1e9)}]
        scores = np.array([candidate["score"] for candidate in kept])
        weights = np.exp(scores - scores.max())
        for candidate, probability in zip(kept, weights / weights.sum(), strict=True):
            candidate["probability"] = probability
            candidate["text"] = example["context"][candidate["offsets"][0] : candidate["offsets"][1]]
        texts[example["id"]] = kept[0]["text"]
        no_answer[example["id"]] = null_score - float(kept[0]["score"])
    return texts, no_answer
