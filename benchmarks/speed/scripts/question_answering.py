"""Fine-tune extractive question answering with the Trainer, as scripts commonly do; ``--tuned`` pads less.

Windows of 384 tokens that share 128; "no answer" is position 0; the answers of the validation rows come from
:func:`spans.postprocess`, their figures from the same metric as finelaunch's, at the threshold with the best F1.
"""

import numpy as np
import torch
from datasets import load_dataset
from marks import read_options, timed, trainer_class, training_arguments, write_metrics
from spans import postprocess
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    default_data_collator,
    set_seed,
)

STRIDE = 128


def main():
    options = read_options()
    set_seed(42)
    with timed("prepare"):
        raw = load_dataset("json", data_files={"train": options.train, "validation": options.validation})
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        tuned, max_length = options.tuned, options.max_length  # not the options: their hash changes with every run

        def tokenize(rows):
            return tokenizer(
                [question.strip() for question in rows["question"]],
                rows["context"],
                truncation="only_second",
                max_length=max_length,
                stride=min(STRIDE, max_length // 3),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                padding=False if tuned else "max_length",
            )

        def train_features(rows):
            encoded = tokenize(rows)
            owners, all_offsets = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
            encoded["start_positions"], encoded["end_positions"] = [], []
            for index, offsets in enumerate(all_offsets):
                start, end = positions(rows["answers"][owners[index]], offsets, encoded.sequence_ids(index))
                encoded["start_positions"].append(start)
                encoded["end_positions"].append(end)
            if tuned:
                encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
            return encoded

        def validation_features(rows):
            encoded = tokenize(rows)
            owners = encoded.pop("overflow_to_sample_mapping")
            encoded["example_id"] = [rows["id"][owner] for owner in owners]
            for index, offsets in enumerate(encoded["offset_mapping"]):
                parts = encoded.sequence_ids(index)
                encoded["offset_mapping"][index] = [
                    pair if part == 1 else None for pair, part in zip(offsets, parts, strict=True)
                ]
            return encoded

        columns = raw["train"].column_names
        train = raw["train"].map(train_features, batched=True, remove_columns=columns)
        validation = raw["validation"].map(validation_features, batched=True, remove_columns=columns)
    model = AutoModelForQuestionAnswering.from_pretrained(options.model)
    if options.mask_padding:
        model.register_forward_hook(mask_padding, with_kwargs=True)
    trainer = trainer_class(options)(
        model=model,
        args=training_arguments(options),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer) if options.tuned else default_data_collator,
        processing_class=tokenizer,
    )
    trainer.train()
    if options.start_only:
        return
    with timed("evaluate", examples=len(raw["validation"])):
        predicted = trainer.predict(validation.remove_columns(["example_id", "offset_mapping"]))
        start_logits, end_logits = predicted.predictions
        with timed("postprocess"):
            texts, no_answer = postprocess(raw["validation"], validation, start_logits, end_logits)
        metrics = measure(raw["validation"], texts, no_answer)
    write_metrics(options, metrics)
    if options.keep_logits:
        np.savez(options.out / "logits.npz", starts=start_logits, ends=end_logits)


def positions(answers, offsets, parts):
    """Return first and last token of the first answer, or 0 twice where the window does not hold it."""
    if not answers["text"]:
        return 0, 0
    first = answers["answer_start"][0]
    last = first + len(answers["text"][0])
    start, end = parts.index(1), len(parts) - 1
    while parts[end] != 1:
        end -= 1
    if offsets[start][0] > first or offsets[end][1] < last:
        return 0, 0
    while start < len(offsets) and offsets[start][0] <= first and parts[start] == 1:
        start += 1
    while offsets[end][1] >= last:
        end -= 1
    return start - 1, end + 1


def measure(examples, texts, no_answer):
    from finelaunch.metrics.squad import choose_threshold, run_metrics

    rows = [{"id": row["id"], "answers": row["answers"]} for row in examples]
    figures = run_metrics(rows, texts, no_answer, choose_threshold(rows, texts, no_answer))
    return {name: figures[name] for name in ("exact_match", "f1")}


def mask_padding(module, args, kwargs, outputs):
    """Take padded positions out of the softmax of logits and loss."""
    padded = kwargs["attention_mask"] == 0
    for name in ("start_logits", "end_logits"):
        outputs[name] = outputs[name].masked_fill(padded, torch.finfo(outputs[name].dtype).min)
    if kwargs.get("start_positions") is not None:
        start = cross_entropy(outputs["start_logits"], kwargs["start_positions"])
        outputs["loss"] = (start + cross_entropy(outputs["end_logits"], kwargs["end_positions"])) / 2
    return outputs


if __name__ == "__main__":
    main()
