"""Configs of models as a recipe names them, and what is refused of them before weights are loaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.hub import why_offline
from finelaunch.data.sources import PACKAGE_PREFIX, resolve
from finelaunch.errors import BadInput, Problem, RequirementMissing
from finelaunch.models.section import ModelSection
from finelaunch.section.base import nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

MAX_HUB_NAME = 200
POSITIONS_AFTER_PADDING = {"roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod"}
POSITIONS_AFTER_PADDING |= {"mpnet", "longformer", "data2vec-text", "luke", "mluke", "ibert", "esm", "markuplm", "lilt"}
"""Model types whose first token has the position pad_token_id + 1, so that so many positions are never used."""
SETTLED_KEYS = ("id2label", "label2id", "return_dict", "architectures", "dtype", "torch_dtype")
"""Keys of a model's config that the task, the tokenizer or this module settles."""


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


def check_labels(config: "PretrainedConfig", task_config: Mapping[str, Any]) -> None:
    """Refuse labels that a classifier's head was not trained for; a head without named labels takes any."""
    trained = list(getattr(config, "id2label", {}).values())
    wanted = list(task_config.get("id2label", {}).values())
    unnamed = trained == [f"LABEL_{number}" for number in range(len(trained))]
    if not wanted or unnamed or trained == wanted or not any("Classification" in c for c in config.architectures or ()):
        return
    what = f"the model was trained for the labels {', '.join(map(str, trained))}, asked for are {', '.join(wanted)}"
    remedy = "give them in its order, or start from a model without a head"
    raise BadInput(Problem("recipe", "task.label_names", what, "", remedy))


def read_config(section: ModelSection, tokenizer: "PreTrainedTokenizerBase") -> "PretrainedConfig":
    """Return the config that ``section`` names or describes, with its own values over it.

    Raises:
        BadInput: A key that the architecture does not know, or no such architecture.
        RequirementMissing: A hub model that is neither cached nor reachable.
    """
    from transformers import AutoConfig

    if section.init == "pretrained":
        with hub_faults(section), refusals("model.name_or_path"):
            config = AutoConfig.from_pretrained(
                local_folder(section) or str(section.name_or_path), revision=section.revision, trust_remote_code=False
            )
        _check_keys(config, section.config)
        with refusals("model.config"):
            for name, value in section.config.items():
                setattr(config, name, value)
        return config
    blank = blank_config(section)
    shape = {name: value for name, value in section.config.items() if name != "model_type"}
    tokens = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")
    }
    shape |= {name: value for name, value in tokens.items() if hasattr(blank, name)}
    with refusals("model.config"):
        return AutoConfig.for_model(blank.model_type, vocab_size=len(tokenizer), **shape)


def blank_config(section: ModelSection) -> "PretrainedConfig":
    """Return the config of an architecture as it is by default, the keys that the section gives being known to it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    model_type = section.config["model_type"]
    if model_type not in CONFIG_MAPPING:
        near = nearest(model_type, CONFIG_MAPPING.keys())
        what, remedy = f"{model_type!r} is not known to transformers", f"did you mean {near!r}?" if near else ""
        raise BadInput(Problem("recipe", "model.config.model_type", what, "such as bert or gpt2", remedy))
    with refusals("model.config"):
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


def check_positions(config: "PretrainedConfig", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
    """Refuse inputs that are longer than the model's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    positions = usable_positions(config.model_type, positions, getattr(config, "pad_token_id", None))
    limits = (positions, tokenizer.model_max_length)
    limit = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
    if limit is not None and max_length > limit:
        raise BadInput(too_long(max_length, limit))


def usable_positions(model_type: Any, positions: Any, pad_token_id: Any) -> int | None:
    """Return how many tokens a model of so many ``positions`` takes; None where its config states no number of them."""
    if not isinstance(positions, int) or positions <= 0:
        return None
    if model_type not in POSITIONS_AFTER_PADDING:
        return positions
    return positions - (pad_token_id if isinstance(pad_token_id, int) else 0) - 1


def too_long(max_length: int, limit: int) -> Problem:
    """Return the problem of inputs of ``max_length`` tokens for a model that takes ``limit``."""
    what = f"{max_length} is more than the {limit} positions of the model"
    return Problem("recipe", "task.max_length", what, f"at most {limit}")


def check_causal(config: "PretrainedConfig", auto_class: str) -> None:
    """Refuse an encoder as a causal LM: it sees the tokens that it is to predict, and its loss says nothing."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if auto_class != "AutoModelForCausalLM" or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return
    if getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False):
        what = f"{config.model_type} attends to what comes after, too"
        remedy = "set model.config.is_decoder=true, or take a decoder such as gpt2 or llama"
        raise BadInput(Problem("recipe", "model", what, "a model that attends to what came before only", remedy))


@contextmanager
def refusals(key: str) -> Iterator[None]:
    """Turn whatever a library raises over a user's config or weights, but for a missing file, into a problem.

    These are of many types: KeyError for an unknown activation, AssertionError, SafetensorError, RuntimeError for sizes
    that do not fit.
    """
    try:
        yield
    except (OSError, BadInput):
        raise
    except Exception as error:
        what = f"no model for this task can be made of it: {type(error).__name__}: {first_line(error)}"
        raise BadInput(Problem("recipe", key, what)) from error


@contextmanager
def hub_faults(section: ModelSection) -> Iterator[None]:
    """Turn the exceptions of a hub that is out of reach into one sentence."""
    try:
        yield
    except OSError as error:
        if local_folder(section) is not None:
            what = f"cannot be loaded: {first_line(error)}"
            raise BadInput(Problem("recipe", "model.name_or_path", what)) from None
        raise RequirementMissing(
            f"model: {section.name_or_path} is neither in the local cache nor to be had from the hub{why_offline()}: "
            f"{first_line(error)}; finelaunch prefetch RECIPE fetches it where there is a network, or give "
            "model.name_or_path=FOLDER"
        ) from None


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
