"""Tokenizers and models as a recipe names them.

Weights are held in fp32 whatever the checkpoint's dtype, or in 4 bits where the method says so; precision is a matter
of the machine. Code of a model repository is never run.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.hub import is_commit
from finelaunch.data.sources import hash_files
from finelaunch.errors import BadInput, FinelaunchError, Problem, RequirementMissing
from finelaunch.models.config import (
    blank_config,
    check_causal,
    check_labels,
    check_positions,
    first_line,
    hub_faults,
    local_folder,
    read_config,
    refusals,
)
from finelaunch.models.fingerprint import content_of
from finelaunch.models.quantization import Quantization
from finelaunch.models.section import ModelSection

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model", "added_tokens.json")
TOKENIZER_FILES += ("chat_template*", "config.json")
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is worth knowing of its loading.

    Args:
        model: In training mode; on the CPU in fp32, or in 4 bits on the device that it is trained on.
        newly_initialised: Names of parameters that the checkpoint did not hold.
        unused: Names of tensors in the checkpoint that the model has no place for.
        fingerprint: SHA-256 of local weights, the commit of a hub model, or ``scratch:`` and SHA-256 of what was drawn.
        auto_class: Name of the transformers Auto class.
        is_scratch: All weights were drawn.
    """

    model: "PreTrainedModel"
    newly_initialised: tuple[str, ...]
    unused: tuple[str, ...]
    fingerprint: str
    auto_class: str
    is_scratch: bool = False

    @property
    def is_causal(self) -> bool:
        """Whether it is a language model, without a head of a task."""
        return self.auto_class == "AutoModelForCausalLM"

    @property
    def drawn(self) -> tuple[str, ...]:
        """The names of the weights that were drawn beside those of a pretrained model."""
        return () if self.is_scratch else self.newly_initialised


def tokenizer_hash(section: ModelSection) -> str:
    """Return what changes when the tokenizer changes; needs no torch.

    Raises:
        BadInput: A local folder that is not there.
        RequirementMissing: A hub model that is neither cached nor reachable.
    """
    if section.tokenizer is not None:
        types = section.config.get("type_vocab_size")
        return f"scratch:{section.tokenizer.vocab_size}:{section.config.get('model_type')}:{types}"
    folder = local_folder(section)
    if folder is None:
        from huggingface_hub import snapshot_download

        with hub_faults(section):
            folder = Path(
                snapshot_download(
                    str(section.name_or_path), revision=section.revision, allow_patterns=list(TOKENIZER_FILES)
                )
            )
    files = sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()})
    return hash_files(files, folder)


def load_tokenizer(section: ModelSection, trained: Path | None = None) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of ``section``, with a padding token.

    Args:
        section: The model's section.
        trained: The folder of a tokenizer trained for ``init: scratch``.

    Raises:
        BadInput: There is none, or only a slow one.
        RequirementMissing: A hub model that is neither cached nor reachable, or a package that reads its vocabulary.
    """
    from transformers import AutoTokenizer

    source = trained or local_folder(section) or str(section.name_or_path)
    with hub_faults(section):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=section.revision, trust_remote_code=False)
        except OSError:
            raise
        except Exception as error:  # tokenizers raises bare Exception for files that it cannot read
            _require_sentencepiece(error)
            what = f"its tokenizer cannot be loaded: {first_line(error)}"
            raise BadInput(Problem("recipe", "model.name_or_path", what)) from error
    if not tokenizer.is_fast:
        what = f"{type(tokenizer).__name__} has no fast version, and answers are mapped through its offsets"
        raise BadInput(Problem("recipe", "model.name_or_path", what, "a model with tokenizer.json"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def _require_sentencepiece(error: Exception) -> None:
    """Refuse a vocabulary of SentencePiece without what reads it; transformers then names another package.

    Raises:
        RequirementMissing: A package is not installed.
    """
    missing = [package for package in ("sentencepiece", "protobuf") if not list(distributions(name=package))]
    if missing and "tiktoken" in str(error):
        what = "its tokenizer is a SentencePiece vocabulary (spm.model) without tokenizer.json"
        install = f"pip install {' '.join(missing)}"
        raise RequirementMissing(str(Problem("recipe", "model.name_or_path", what, "", install))) from error


def train_tokenizer(texts: Iterator[str], section: ModelSection, folder: Path) -> None:
    """Train a byte-level BPE on ``texts`` and write it to ``folder`` in the format of transformers.

    Two texts are joined as ``[CLS] a [SEP] b [SEP]``; ``[BOS]`` and ``[EOS]`` are there for generation. Token types are
    given to architectures that have an embedding for them; others fail over them, or take them for something else.

    Args:
        texts: The training texts.
        section: A section with ``init: scratch``. Its vocabulary size counts special tokens; the vocabulary is smaller
            where the texts hold less.
        folder: Where ``tokenizer.json`` and its config go.

    Raises:
        BadInput: An architecture that transformers does not know, or a key that the architecture does not.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    assert section.tokenizer is not None
    types = section.config.get("type_vocab_size", getattr(blank_config(section), "type_vocab_size", 0))
    names = ["input_ids", "token_type_ids", "attention_mask"] if types > 1 else ["input_ids", "attention_mask"]
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=section.tokenizer.vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    edges = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", edges),
        ]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=names, **SPECIAL_TOKENS)
    wrapped.save_pretrained(folder)


def load_model(
    section: ModelSection,
    auto_class: str,
    task_config: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    seed: int,
    quantization: Quantization | None = None,
) -> LoadedModel:
    """Return the model of ``section`` with the task's head, new weights drawn from ``seed``.

    Args:
        section: The model's section.
        auto_class: Name of the transformers Auto class.
        task_config: Values of the config that the task settles.
        tokenizer: The tokenizer that encodes its inputs.
        max_length: Tokens of the longest input.
        seed: Seed of all weights that are not loaded.
        quantization: How the weights of linear layers are held; those of the head and the drawn ones stay in fp32.

    Raises:
        BadInput: A config key that the architecture does not know, inputs longer than its positions, weights that do
            not fit, or an architecture without the task's head.
        RequirementMissing: A hub model that is neither cached nor reachable, or bitsandbytes is not installed.
    """
    import transformers

    loader = getattr(transformers, auto_class)
    config = read_config(section, tokenizer)
    check_labels(config, task_config)
    for name, value in task_config.items():
        setattr(config, name, value)
    check_positions(config, tokenizer, max_length)
    check_causal(config, auto_class)
    transformers.set_seed(seed)
    missing: list[str] = []
    unused: list[str] = []
    if section.init == "scratch":
        with refusals("model.config"):
            model = loader.from_config(config, trust_remote_code=False).float()
        missing, fingerprint = [name for name, _ in model.named_parameters()], f"scratch:{_hash_weights(model)}"
        if quantization is not None:
            model = _quantised(model, quantization)
    else:
        from finelaunch.models.adapters import built_whole, merged_base

        source = local_folder(section) or str(section.name_or_path)
        fingerprint = "" if local_folder(section) is None else _fingerprint(section)
        with hub_faults(section), refusals("model"):
            merged = merged_base(source)
            transformers.set_seed(seed)  # merging an adapter has drawn numbers, too
            with built_whole() if merged is not None else nullcontext():
                model, info = _read(loader, source, section.revision, config, quantization, merged)
        fingerprint = fingerprint or _fingerprint(section)  # a hub's is known once it is here
        missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if model.config.pad_token_id is None:
        # Only now: known before, it would be the embeddings' padding_idx, and a pad token that is EOS would not learn.
        model.config.pad_token_id = tokenizer.pad_token_id
    is_scratch = section.init == "scratch"
    return LoadedModel(model.train(), tuple(missing), tuple(unused), fingerprint, auto_class, is_scratch)


def _read(
    loader: Any,
    source: Any,
    revision: str | None,
    config: "PretrainedConfig",
    quantization: Quantization | None,
    merged: "PreTrainedModel | None",
) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Return what ``from_pretrained`` reads, from ``source`` or from what is in memory already, and its report."""
    import torch

    given: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
    given["trust_remote_code"] = False
    if merged is not None:
        source, given["state_dict"] = None, merged.state_dict()
        config.tie_word_embeddings = merged.config.tie_word_embeddings
        with torch.device("meta"):  # without a folder the class itself is asked
            loader = type(loader.from_config(config, trust_remote_code=False))
    else:
        given["revision"] = revision
    if quantization is None:
        return loader.from_pretrained(source, **given)
    blank, info = loader.from_pretrained(source, **given, device_map="meta")
    kept = _kept_whole(blank, info["missing_keys"])
    model, info = loader.from_pretrained(source, **given, **quantization.arguments(kept))
    _refuse_quantised_empty(model)
    return model, info


def _quantised(model: "PreTrainedModel", quantization: Quantization) -> "PreTrainedModel":
    """Return ``model`` with the weights of its base in 4 bits."""
    import torch

    given: dict[str, Any] = {"config": model.config, "dtype": torch.float32, "state_dict": model.state_dict()}
    given["trust_remote_code"] = False
    model = type(model).from_pretrained(None, **given, **quantization.arguments(_kept_whole(model, [])))
    _refuse_quantised_empty(model)
    return model


def _kept_whole(model: "PreTrainedModel", missing: list[str]) -> list[str]:
    """Return the full names of the modules that are not quantised: the head's, and those whose weights are drawn."""
    from torch import nn

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    drawn = {name.rpartition(".")[0] for name in missing}
    return [name for name in linear if name in drawn or not name.startswith(f"{model.base_model_prefix}.")]


def _refuse_quantised_empty(model: "PreTrainedModel") -> None:
    """Refuse a model of which a module was quantised before it held weights.

    Raises:
        FinelaunchError: There is one.
    """
    empty = [name for name, module in model.named_modules() if _is_quantised_empty(module)]
    if empty:
        raise FinelaunchError(f"model: {', '.join(empty)} were quantised before they held weights")


def _is_quantised_empty(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return type(weight).__name__ == "Params4bit" and weight.quant_state is None  # type: ignore[union-attr]


def _hash_weights(model: "PreTrainedModel") -> str:
    """Return the SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(section: ModelSection) -> str:
    folder = local_folder(section)
    if folder is None:
        return f"{section.name_or_path}@{_commit(section)}"
    return content_of(folder)


def _commit(section: ModelSection) -> str | None:
    """Return the commit of a hub model that was loaded: its files lie in a folder of that name."""
    if is_commit(section.revision):
        return section.revision
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(str(section.name_or_path), "config.json", revision=section.revision)
    return Path(path).parent.name if isinstance(path, str) else None
