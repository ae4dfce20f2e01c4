"""How long finding the answer spans takes: the exact search of finelaunch beside the usual double loop, in one run.

Both get the same logits and give the text and score of the best span of every feature. The double loop is what
question-answering scripts commonly do: per feature the 20 best starts with the 20 best ends, unusable pairs passed
over, a list of candidates sorted and given probabilities. They take turns, so that a busy machine slows both.

    python benchmarks/span_search.py --features 512 --tokens 384 --rounds 5
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from finelaunch.metrics.spans import best_spans

Answers = list[tuple[str, float]]
WORDS = ["the", "river", "of", "1066", "Normandy", "was", "settled", "by", "people", "from", "Norway", "and", "Iceland"]


@dataclass(frozen=True)
class Features:
    """What a model and a tokenizer leave behind for one set of features.

    Args:
        start_logits: float32 [features, tokens].
        end_logits: float32 [features, tokens].
        offsets: int64 [features, tokens, 2], characters of each token in its context; 0, 0 where not of the context.
        answerable: bool [features, tokens], which tokens are of the context.
        contexts: The text of each feature.
    """

    start_logits: NDArray[np.float32]
    end_logits: NDArray[np.float32]
    offsets: NDArray[np.int64]
    answerable: NDArray[np.bool_]
    contexts: list[str]


def make_features(num_features: int, num_tokens: int, peaked: bool, seed: int) -> Features:
    """Return features with a question in front, a context of words and, for a third of them, padding.

    Args:
        num_features: How many.
        num_tokens: Tokens of each, at least 64.
        peaked: Whether a span stands out, as after training; otherwise the logits are noise, as before it.
        seed: Of the random numbers.
    """
    random = np.random.default_rng(seed)
    start_logits, end_logits = 2.0 * random.standard_normal((2, num_features, num_tokens), dtype=np.float32)
    offsets = np.zeros((num_features, num_tokens, 2), np.int64)
    answerable = np.zeros((num_features, num_tokens), bool)
    contexts = []
    for row in range(num_features):
        first = int(random.integers(10, 30))
        last = num_tokens - 1 if row % 3 else int(random.integers(num_tokens // 2, num_tokens))
        words = [WORDS[i] for i in random.integers(0, len(WORDS), last - first)]
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        offsets[row, first:last, 0] = ends - [len(word) for word in words]
        offsets[row, first:last, 1] = ends
        answerable[row, first:last] = True
        contexts.append(" ".join(words))
        if peaked:
            start = int(random.integers(first, last))
            start_logits[row, start] += 8.0
            end_logits[row, min(start + int(random.integers(0, 5)), last - 1)] += 8.0
    return Features(start_logits, end_logits, offsets, answerable, contexts)


def exact_search(features: Features, max_answer_length: int) -> Answers:
    """Return text and score of the best of all spans per feature."""
    found = best_spans(features.start_logits, features.end_logits, features.answerable, max_answer_length)
    rows = np.arange(len(found.start))
    begins = features.offsets[rows, found.start, 0].tolist()
    finishes = features.offsets[rows, found.end, 1].tolist()
    texts = [text[i:j] for text, i, j in zip(features.contexts, begins, finishes, strict=True)]
    return list(zip(texts, found.score.tolist(), strict=True))


def make_double_loop(features: Features, num_best: int) -> Callable[[Features, int], Answers]:
    """Return the double loop for these features, with their offsets as lists of pairs and None, as scripts keep them.

    Args:
        features: What will be searched; the conversion of the offsets is not part of what is timed.
        num_best: How many starts and ends are tried, and how many candidates are kept.
    """
    all_offsets = [
        [tuple(pair) if usable else None for pair, usable in zip(pairs, mask, strict=True)]
        for pairs, mask in zip(features.offsets.tolist(), features.answerable.tolist(), strict=True)
    ]

    def search(features: Features, max_answer_length: int) -> Answers:
        answers: Answers = []
        for row, context in enumerate(features.contexts):
            starts, ends, offsets = features.start_logits[row], features.end_logits[row], all_offsets[row]
            best_starts = np.argsort(starts)[: -num_best - 1 : -1].tolist()
            best_ends = np.argsort(ends)[: -num_best - 1 : -1].tolist()
            candidates = []
            for start in best_starts:
                for end in best_ends:
                    begin, finish = offsets[start], offsets[end]
                    if begin is None or finish is None:
                        continue
                    if end < start or end - start + 1 > max_answer_length:
                        continue
                    candidates.append(
                        {
                            "offsets": (begin[0], finish[1]),
                            "score": starts[start] + ends[end],
                            "start_logit": starts[start],
                            "end_logit": ends[end],
                        }
                    )
            kept = sorted(candidates, key=lambda candidate: candidate["score"], reverse=True)[:num_best]
            if not kept:
                answers.append(("", float("-inf")))
                continue
            scores = np.array([candidate["score"] for candidate in kept])
            weights = np.exp(scores - scores.max())
            for candidate, probability in zip(kept, weights / weights.sum(), strict=True):
                candidate["probability"] = probability
                candidate["text"] = context[candidate["offsets"][0] : candidate["offsets"][1]]
            answers.append((kept[0]["text"], float(kept[0]["score"])))
        return answers

    return search


def measure(search: Callable[[Features, int], Answers], features: Features, limit: int) -> tuple[float, Answers]:
    """Return milliseconds per feature and the answers."""
    began = time.perf_counter()
    answers = search(features, limit)
    return 1000.0 * (time.perf_counter() - began) / len(features.contexts), answers


def compare(kind: str, features: Features, rounds: int, limit: int, num_best: int) -> None:
    """Print both times, their ratio and how the answers compare.

    Raises:
        AssertionError: The double loop found a better span: the exact search is wrong.
    """
    double_loop = make_double_loop(features, num_best)
    exact_times, loop_times, exact, loop = [], [], [], []
    exact_search(features, limit)
    for _ in range(rounds):
        milliseconds, exact = measure(exact_search, features, limit)
        exact_times.append(milliseconds)
        milliseconds, loop = measure(double_loop, features, limit)
        loop_times.append(milliseconds)
    ratios = [theirs / ours for theirs, ours in zip(loop_times, exact_times, strict=True)]
    num_equal = sum(ours == theirs for ours, theirs in zip(exact, loop, strict=True))
    num_better = sum(ours[1] > theirs[1] for ours, theirs in zip(exact, loop, strict=True))
    num_worse = sum(ours[1] < theirs[1] for ours, theirs in zip(exact, loop, strict=True))
    assert num_worse == 0, f"the exact search is worse for {num_worse} features"
    print(f"{kind} logits, {rounds} rounds")
    for name, times in (("double loop", loop_times), ("exact search", exact_times)):
        spread = f"{min(times):.4f} to {max(times):.4f}"
        print(f"  {name:13s}{median(times):8.4f} ms a feature (median; {spread})")
    print(f"  ratio        {median(ratios):8.1f} (median; {min(ratios):.1f} to {max(ratios):.1f})")
    print(f"  of {len(exact)} answers {num_equal} equal, {num_better} better in score, {num_worse} worse")


def main() -> None:
    """Compare both searches on noise and on peaked logits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--max-answer-length", type=int, default=30)
    parser.add_argument("--best", type=int, default=20, help="starts and ends that the double loop tries")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.features < 1 or options.tokens < 64 or options.rounds < 1:
        parser.error("at least 1 feature, 64 tokens and 1 round")
    print(
        f"{options.features} features of {options.tokens} tokens, answers of up to {options.max_answer_length} tokens"
    )
    for kind in ("noise", "peaked"):
        features = make_features(options.features, options.tokens, kind == "peaked", options.seed)
        compare(kind, features, options.rounds, options.max_answer_length, options.best)


if __name__ == "__main__":
    main()
