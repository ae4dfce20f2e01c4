"""Fine-tune a causal LM on prompts and answers, loss on the answers; ``--tuned`` pads to the longest row instead."""

from datasets import load_dataset
from marks import read_options, timed, trainer_class, training_arguments, write_metrics
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    default_data_collator,
    set_seed,
)

IGNORED = -100


def main():
    options = read_options()
    set_seed(42)
    with timed("prepare"):
        raw = load_dataset("json", data_files={"train": options.train, "validation": options.validation})
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        tuned, max_length = options.tuned, options.max_length  # not the options: their hash changes with every run

        def tokenize(rows):
            prompts = [f"Input: {prompt.strip()}\nOutput:" for prompt in rows["prompt"]]
            answers = [f" {answer.strip()}{tokenizer.eos_token}" for answer in rows["completion"]]
            columns = {"input_ids": [], "attention_mask": [], "labels": []}
            encoded = zip(tokenizer(prompts)["input_ids"], tokenizer(answers)["input_ids"], strict=True)
            for prompt, answer in encoded:
                ids = (prompt + answer)[:max_length]
                labels = ([IGNORED] * len(prompt) + answer)[:max_length]
                missing = 0 if tuned else max_length - len(ids)
                columns["input_ids"].append(ids + [tokenizer.pad_token_id] * missing)
                columns["attention_mask"].append([1] * len(ids) + [0] * missing)
                columns["labels"].append(labels + [IGNORED] * missing)
            if tuned:
                columns["length"] = [len(ids) for ids in columns["input_ids"]]
            return columns

        encoded = raw.map(tokenize, batched=True, remove_columns=raw["train"].column_names)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED) if options.tuned else default_data_collator
    trainer = trainer_class(options)(
        model=model,
        args=training_arguments(options),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.args.prediction_loss_only = True
    trainer.train()
    if options.start_only:
        return
    with timed("evaluate", examples=len(encoded["validation"])):
        metrics = trainer.evaluate()
    write_metrics(options, {"loss": metrics["eval_loss"]})


if __name__ == "__main__":
    main()
