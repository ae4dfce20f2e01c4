"""Fine-tune a classifier with the Trainer, as scripts commonly do; ``--tuned`` pads to the longest row instead."""

import numpy as np
from datasets import load_dataset
from marks import read_options, timed, trainer_class, training_arguments, write_metrics
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    default_data_collator,
    set_seed,
)


def main():
    options = read_options()
    set_seed(42)
    with timed("prepare"):
        raw = load_dataset("json", data_files={"train": options.train, "validation": options.validation})
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        tuned, max_length = options.tuned, options.max_length  # not the options: their hash changes with every run

        def tokenize(rows):
            padding = False if tuned else "max_length"
            encoded = tokenizer(rows["text"], truncation=True, max_length=max_length, padding=padding)
            encoded["labels"] = rows["label"]
            if tuned:
                encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
            return encoded

        encoded = raw.map(tokenize, batched=True, remove_columns=raw["train"].column_names)
    model = AutoModelForSequenceClassification.from_pretrained(options.model)

    def compute_metrics(predicted):
        return {"accuracy": float((np.argmax(predicted.predictions, axis=-1) == predicted.label_ids).mean())}

    trainer = trainer_class(options)(
        model=model,
        args=training_arguments(options),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=DataCollatorWithPadding(tokenizer) if options.tuned else default_data_collator,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    trainer.train()
    if options.start_only:
        return
    with timed("evaluate", examples=len(encoded["validation"])):
        metrics = trainer.evaluate()
    write_metrics(options, {"accuracy": metrics["eval_accuracy"], "loss": metrics["eval_loss"]})


if __name__ == "__main__":
    main()
