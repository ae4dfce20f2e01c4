"""Tokenizers and models as a recipe names them.

Weights are held in fp32 whatever the checkpoint's dtype; precision is a matter of the machine. Code of a model
repository is never run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.hub import is_commit, why_offline
from finelaunch.data.sources import PACKAGE_PREFIX, hash_files, resolve
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.models.section import ModelSection
from finelaunch.section.base import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "*.model", "added_tokens.json")
TOKENIZER_FILES += ("chat_template*", "config.json")
MAX_HUB_NAME = 200
POSITIONS_AFTER_PADDING = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod"}
POSITIONS_AFTER_PADDING |= {"mpnet", "longformer", "data2vec-text", "luke", "mluke", "ibert", "esm", "markuplm", "lilt"}
"""Model types whose first token has the position pad_token_id + 1, so that so many positions are never used."""
SETTLED_KEYS = ("id2label", "label2id", "return_dict", "architectures", "dtype", "torch_dtype")
"""Keys of a model's config that the task, the tokenizer or this module settles."""
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
        model: On the CPU, in fp32, in training mode.
        newly_initialised: Names of parameters that the checkpoint did not hold.
        unused: Names of tensors in the checkpoint that the model has no place for.
        fingerprint: SHA-256 of local weights, the commit of a hub model, or ``scratch``.
    """

    model: "PreTrainedModel"
    newly_initialised: tuple[str, ...]
    unused: tuple[str, ...]
    fingerprint: str


def local_folder(section: ModelSection, origin: str = "recipe") -> Path | None:
    """Return the folder of a model that needs no hub, or None for a hub name.

    A run directory stands for the ``model`` folder in it.

    Raises:
        BadInput: The name looks like a path and is not there, or a revision is asked of it.
        RequirementMissing: The package that it names is not installed.
    """
    name = section.name_or_path or ""
    looks_local = name.startswith((PACKAGE_PREFIX, "/", ".", "~")) or name.count("/") > 1
    if not (looks_local or (len(name) < MAX_HUB_NAME and Path(name).exists())):
        return None
    if section.revision is not None:
        what = f"has no effect on the local path {name}"
        raise BadInput(Problem(origin, "model.revision", what, "", "leave it out"))
    folder = resolve(name, "model.name_or_path", origin)
    folder = folder / "model" if (folder / "model" / "config.json").exists() else folder
    if not (folder / "config.json").exists():
        what = f"{folder} holds no config.json"
        raise BadInput(Problem(origin, "model.name_or_path", what, "a folder that save_pretrained wrote"))
    return folder


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

        with _hub_faults(section):
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
        RequirementMissing: A hub model that is neither cached nor reachable.
    """
    from transformers import AutoTokenizer

    source = trained or local_folder(section) or str(section.name_or_path)
    with _hub_faults(section):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, revision=section.revision)
        except OSError:
            raise
        except Exception as error:  # tokenizers raises bare Exception for files that it cannot read
            what = f"its tokenizer cannot be loaded: {_first_line(error)}"
            raise BadInput(Problem("recipe", "model.name_or_path", what)) from error
    if not tokenizer.is_fast:
        what = f"{type(tokenizer).__name__} has no fast version, and answers are mapped through its offsets"
        raise BadInput(Problem("recipe", "model.name_or_path", what, "a model with tokenizer.json"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


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
    types = section.config.get("type_vocab_size", getattr(_blank_config(section), "type_vocab_size", 0))
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
) -> LoadedModel:
    """Return the model of ``section`` with the task's head, new weights drawn from ``seed``.

    Args:
        section: The model's section.
        auto_class: Name of the transformers Auto class.
        task_config: Values of the config that the task settles.
        tokenizer: The tokenizer that encodes its inputs.
        max_length: Tokens of the longest input.
        seed: Seed of all weights that are not loaded.

    Raises:
        BadInput: A config key that the architecture does not know, inputs longer than its positions, weights that do
            not fit, or an architecture without the task's head.
        RequirementMissing: A hub model that is neither cached nor reachable.
    """
    import torch
    import transformers

    loader = getattr(transformers, auto_class)
    config = _config(section, tokenizer)
    _check_labels(config, task_config)
    for name, value in task_config.items():
        setattr(config, name, value)
    _check_positions(config, tokenizer, max_length)
    _check_causal(config, auto_class)
    transformers.set_seed(seed)
    if section.init == "scratch":
        with _refusals("model.config"):
            model = loader.from_config(config).float()
        missing, unused, fingerprint = [name for name, _ in model.named_parameters()], [], "scratch"
    else:
        with _hub_faults(section), _refusals("model"):
            model, info = loader.from_pretrained(
                local_folder(section) or section.name_or_path,
                revision=section.revision,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
            )
        missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        fingerprint = _fingerprint(section)
    if model.config.pad_token_id is None:
        # Only now: known before, it would be the embeddings' padding_idx, and a pad token that is EOS would not learn.
        model.config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model.train(), tuple(missing), tuple(unused), fingerprint)


@contextmanager
def _refusals(key: str) -> Iterator[None]:
    """Turn whatever a library raises over a user's config or weights, but for a missing file, into a problem.

    These are of many types: KeyError for an unknown activation, AssertionError, SafetensorError, RuntimeError for sizes
    that do not fit.
    """
    try:
        yield
    except (OSError, BadInput):
        raise
    except Exception as error:
        what = f"no model for this task can be made of it: {type(error).__name__}: {_first_line(error)}"
        raise BadInput(Problem("recipe", key, what)) from error


def _check_labels(config: "PretrainedConfig", task_config: Mapping[str, Any]) -> None:
    """Refuse labels that a classifier's head was not trained for; a head without named labels takes any."""
    trained = list(getattr(config, "id2label", {}).values())
    wanted = list(task_config.get("id2label", {}).values())
    unnamed = trained == [f"LABEL_{number}" for number in range(len(trained))]
    if not wanted or unnamed or trained == wanted or not any("Classification" in c for c in config.architectures or ()):
        return
    what = f"the model was trained for the labels {', '.join(map(str, trained))}, asked for are {', '.join(wanted)}"
    remedy = "give them in its order, or start from a model without a head"
    raise BadInput(Problem("recipe", "task.label_names", what, "", remedy))


def _config(section: ModelSection, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    from transformers import AutoConfig

    if section.init == "pretrained":
        with _hub_faults(section), _refusals("model.name_or_path"):
            config = AutoConfig.from_pretrained(
                local_folder(section) or str(section.name_or_path), revision=section.revision
            )
        _check_keys(config, section.config)
        with _refusals("model.config"):
            for name, value in section.config.items():
                setattr(config, name, value)
        return config
    blank = _blank_config(section)
    shape = {name: value for name, value in section.config.items() if name != "model_type"}
    tokens = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")
    }
    shape |= {name: value for name, value in tokens.items() if hasattr(blank, name)}
    with _refusals("model.config"):
        return AutoConfig.for_model(blank.model_type, vocab_size=len(tokenizer), **shape)


def _blank_config(section: ModelSection) -> "PretrainedConfig":
    """Return the config of an architecture as it is by default, the keys that the section gives being known to it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = section.config["model_type"]
    if model_type not in CONFIG_MAPPING:
        near = nearest(model_type, CONFIG_MAPPING.keys())
        what, remedy = f"{model_type!r} is not known to transformers", f"did you mean {near!r}?" if near else ""
        raise BadInput(Problem("recipe", "model.config.model_type", what, "such as bert or gpt2", remedy))
    with _refusals("model.config"):
        blank = AutoConfig.for_model(model_type)
    _check_keys(blank, section.config)
    return blank


def _check_keys(config: "PretrainedConfig", given: Mapping[str, Any]) -> None:
    """Refuse config keys that the architecture does not have; transformers would keep and ignore them."""
    known = {*config.to_dict(), *config.attribute_map}
    problems = []
    for name, value in given.items():
        if name in SETTLED_KEYS:
            problems.append(Problem("recipe", f"model.config.{name}", "is settled by the task", "", "leave it out"))
        elif name == "model_type" and value != config.model_type:
            what = f"{value!r} is not the checkpoint's, which is {config.model_type!r}"
            problems.append(Problem("recipe", "model.config.model_type", what, "", "leave it out"))
        elif name not in known and name != "model_type":
            near = nearest(name, known)
            remedy = f"did you mean {near!r}?" if near else "leave it out"
            problems.append(
                Problem("recipe", f"model.config.{name}", f"not a setting of {config.model_type}", "", remedy)
            )
    if problems:
        raise BadInput(problems)


def _check_positions(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0 and config.model_type in POSITIONS_AFTER_PADDING:
        positions = positions - (config.pad_token_id or 0) - 1
    limits = (positions, tokenizer.model_max_length)
    limit = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
    if limit is not None and max_length > limit:
        what = f"{max_length} is more than the {limit} positions of the model"
        raise BadInput(Problem("recipe", "task.max_length", what, f"at most {limit}"))


def _check_causal(config: "PretrainedConfig", auto_class: str) -> None:
    """Refuse an encoder as a causal LM: it sees the tokens that it is to predict, and its loss says nothing."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if auto_class != "AutoModelForCausalLM" or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return
    if getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False):
        what = f"{config.model_type} attends to what comes after, too"
        remedy = "set model.config.is_decoder=true, or take a decoder such as gpt2 or llama"
        raise BadInput(Problem("recipe", "model", what, "a model that attends to what came before only", remedy))


def _fingerprint(section: ModelSection) -> str:
    folder = local_folder(section)
    if folder is None:
        return f"{section.name_or_path}@{_commit(section)}"
    return hash_files(sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")), folder)


def _commit(section: ModelSection) -> str | None:
    """Return the commit of a hub model that was loaded: its files lie in a folder of that name."""
    if is_commit(section.revision):
        return section.revision
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(str(section.name_or_path), "config.json", revision=section.revision)
    return Path(path).parent.name if isinstance(path, str) else None


@contextmanager
def _hub_faults(section: ModelSection) -> Iterator[None]:
    """Turn the exceptions of a hub that is out of reach into one sentence."""
    try:
        yield
    except OSError as error:
        if local_folder(section) is not None:
            what = f"cannot be loaded: {_first_line(error)}"
            raise BadInput(Problem("recipe", "model.name_or_path", what)) from None
        raise RequirementMissing(
            f"model: {section.name_or_path} is neither in the local cache nor to be had from the hub{why_offline()}: "
            f"{_first_line(error)}; finelaunch prefetch RECIPE fetches it where there is a network, or give "
            "model.name_or_path=FOLDER"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
