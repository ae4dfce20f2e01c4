"""Small bases and adapters for the tests: built from configs, trained for two steps by hand, saved as a run does it."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from finelaunch.evaluation.finished import save_model
from finelaunch.methods import MethodSection, method_for
from finelaunch.models.load import load_model, train_tokenizer
from finelaunch.models.section import ModelSection
from finelaunch.run.directory import RunDirectory
from finelaunch.section.base import Section, build
from finelaunch.section.document import Document
from finelaunch.tasks import TaskSection, task_for

TEXTS = ["A dull film with a good end.", "The fox runs over the hill.", "Nobody was there to see it.", "Why not?"]
LABELS = ["negative", "neutral", "positive"]
SEED = 7
"""The seed that the recipe of a test states; weights are drawn from 7."""
TASK_VALUES = {
    "text_classification": {"max_length": 32},
    "question_answering": {"max_length": 48, "max_question_length": 16, "stride": 8},
    "causal_lm": {"max_length": 32},
}
FACTS = {"text_classification": {"label_names": LABELS}, "question_answering": {}, "causal_lm": {}}
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    },
    "llama": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
}
KINDS = {"bert": "AutoModelForMaskedLM", "llama": "AutoModelForCausalLM", "gpt2": "AutoModelForCausalLM"}


class _Both(Section):
    task: TaskSection
    method: MethodSection


def write_base(folder: Path, model_type: str, seed: int = 0, **shape: Any) -> Path:
    """Write a base of ``model_type`` with its tokenizer to ``folder``, and return it."""
    import transformers

    section = ModelSection(init="scratch", config={"model_type": model_type}, tokenizer={"vocab_size": 320})  # type: ignore[arg-type]
    train_tokenizer(iter(TEXTS * 20), section, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **{**SHAPES[model_type], **shape})
    for name in ("pad", "bos", "eos"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    model = getattr(transformers, KINDS[model_type]).from_config(config)
    for parameter in model.parameters():  # of a drawn BERT all logits are nearly the same
        parameter.data.mul_(4.0) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    return folder


def batch_of(tokenizer: Any) -> Any:
    """Return ids and mask of the texts."""
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def logits_of(model: Any, tokenizer: Any) -> torch.Tensor:
    """Return the logits of the texts, in evaluation mode, of all heads, without those of padded positions."""
    model.eval()
    batch = batch_of(tokenizer)
    with torch.no_grad():
        outputs = model(**batch)
    real = batch["attention_mask"].bool()
    logits = [outputs[name] for name in outputs if name.endswith("logits")]
    return torch.cat([(one[real] if one.shape[:2] == real.shape else one).flatten() for one in logits])


def adapter_run(
    folder: Path,
    base: Path | None,
    task: str = "text_classification",
    method: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    learning_rate: float = 0.05,
) -> tuple[Path, torch.Tensor]:
    """Train an adapter for two steps and save it as a run does; return its folder and its logits."""
    chosen_method = {"name": "lora", "rank": 4, **(method or {})}
    chosen_method = {name: value for name, value in chosen_method.items() if value is not None}
    stated = {"task": {"name": task, **TASK_VALUES[task]}, "method": chosen_method}
    both = build(_Both, Document(stated))
    section = ModelSection(**(model or {"name_or_path": str(base)}))
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    run.recipe.write_text(json.dumps({"model": section.model_dump(mode="json"), "training": {"seed": SEED}}))
    run.manifest.write_text("{}")
    tokenizer = AutoTokenizer.from_pretrained(base)
    chosen, made = method_for(both.method), task_for(both.task)
    facts = FACTS[task]
    quantization = chosen.quantization("fp32")
    loaded = load_model(section, made.auto_class, made.model_config(facts), tokenizer, 32, 7, quantization)
    made.prepare(loaded.model)
    adapted = chosen.apply(loaded)
    adapted.train()
    trained = [one for one in adapted.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    for _ in range(2):
        outputs = adapted(**batch_of(tokenizer))
        sum(outputs[name].pow(2).mean() for name in outputs if name.endswith("logits")).backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()
    base_facts = {
        "name": section.name_or_path,
        "revision": section.revision,
        "init": section.init,
        "config": section.config,
        "fingerprint": loaded.fingerprint,
        "quantization": quantization.facts() if quantization else None,
    }
    logits = logits_of(adapted, tokenizer)
    save_model(run, adapted, None, tokenizer, stated["task"], facts, base_facts, None, both.method.model_dump())
    return run.model, logits
