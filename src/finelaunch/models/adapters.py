"""Adapter folders: what they state, the base they stand on, and how one becomes a part of it.

peft puts an adapter on whatever model it is given, and says nothing where tensors are left over or missing. Here its
base must be the one it was trained on, and every tensor must find its place.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finelaunch.data.hub import is_commit
from finelaunch.data.sources import PACKAGE_PREFIX
from finelaunch.errors import BadInput, Problem
from finelaunch.models.config import hub_faults, refusals
from finelaunch.models.fingerprint import content_of, weights_folder
from finelaunch.models.quantization import Quantization, require
from finelaunch.models.section import ModelSection
from finelaunch.models.stated import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COPY_AGAIN,
    FACTS,
    BaseFacts,
    read_stated,
    refuse_changed,
)
from finelaunch.models.weights import REPLACED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE_FOLDER = "base"
"""Where the base of an adapter lies, below it, if it was drawn anew."""
SHORT = 12
"""Characters of a SHA-256 that a message shows."""
PROMPTS = ("prompt_tuning", "prefix_tuning")
"""Methods that change no weight."""


@dataclass(frozen=True)
class Adapter:
    """What an adapter's folder states.

    Args:
        folder: Where it lies.
        base: What it was trained on.
        method: The method's section.
        task: The task's section.
        files: The SHA-256 of its config and weights as they were written; empty where an old folder does not say.
    """

    folder: Path
    base: BaseFacts
    method: Mapping[str, Any]
    task: Mapping[str, Any]
    files: dict[str, str]

    @property
    def is_prompt(self) -> bool:
        """Whether it is learned vectors, which no weights can take up."""
        return self.method["name"] in PROMPTS

    @property
    def quantization(self) -> Quantization | None:
        """How its base is held, where that is not fp32."""
        return self.base.held

    @property
    def base_name(self) -> str:
        """What its base is called."""
        return self.base.name or f"its {BASE_FOLDER}/"

    @property
    def base_title(self) -> str:
        """Its base's name and what tells it from others of that name."""
        return f"{self.base_name} ({self.base.content[:SHORT]})"

    def section(self, elsewhere: Path | None = None) -> ModelSection:
        """Return where its base is to be loaded from.

        Args:
            elsewhere: A copy of the base.

        Raises:
            BadInput: The base is not there any more.
        """
        config = dict(self.base.config)
        if self.base.init == "scratch":
            return ModelSection(name_or_path=str(self._found(elsewhere or self.folder / BASE_FOLDER)))
        if elsewhere is not None:
            return ModelSection(name_or_path=str(self._found(elsewhere)), config=config)
        name = str(self.base.name)
        if self.base.is_folder:
            places = [Path(name).expanduser(), *([Path(self.base.path)] if self.base.path else [])]
            return ModelSection(name_or_path=str(self._found(*places)), config=config)
        if name.startswith(PACKAGE_PREFIX):
            return ModelSection(name_or_path=name, config=config)
        commit = self.base.fingerprint.rpartition("@")[2]
        revision = commit if is_commit(commit) else self.base.revision
        return ModelSection(name_or_path=name, revision=revision, config=config)

    def _found(self, *places: Path) -> Path:
        for place in places:
            if place.exists():
                return place.resolve()
        what = f"its base {places[0]} is not there"
        raise BadInput(Problem(str(self.folder), "base", what, "", "give --base DIR, a copy of it"))

    def check_base(self, section: ModelSection) -> bool:
        """Refuse another base than the adapter's own; return whether there was something to look at.

        Raises:
            BadInput: It is another one.
        """
        folder = weights_folder(section)
        if folder is None:
            return False
        found, recorded = content_of(folder), self.base.content
        if found != recorded:
            what = (
                f"the adapter belongs to another base: it was trained on {self.base_title}, "
                f"and {section.name_or_path} is another model ({found[:SHORT]})"
            )
            remedy = "give --base DIR, a copy of the base as it was then"
            raise BadInput(Problem(str(self.folder), "base", what, "", remedy))
        return True


def is_adapter(folder: Path) -> bool:
    """Return whether an adapter lies in ``folder``."""
    return (folder / ADAPTER_CONFIG).exists()


def read_adapter(folder: Path) -> Adapter:
    """Return what the adapter in ``folder`` states.

    Raises:
        BadInput: It states nothing of its base and task, or is damaged.
    """
    path = folder / FACTS
    if not path.exists():
        what = f"is an adapter without {FACTS}: its task, its labels and the fingerprint of its base are not known"
        remedy = "give an adapter that finelaunch train or finelaunch export wrote"
        raise BadInput(Problem(str(folder), "", what, "", remedy))
    stated = read_stated(path)
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG, "config.json"):
        if not (folder / name).exists():
            raise BadInput(Problem(str(folder), "", f"{name} is missing", "", COPY_AGAIN))
    return Adapter(folder, stated.base, stated.method, stated.task, stated.files)


def load_base(adapter: Adapter, tokenizer: Any, elsewhere: Path | None = None) -> Any:
    """Return the base of ``adapter`` as it was trained on, a ``LoadedModel``.

    Raises:
        BadInput: It is another one, or not there.
    """
    from transformers import AutoConfig

    from finelaunch.models.load import load_model

    section, auto_class = adapter.section(elsewhere), adapter.base.auto_class
    is_checked = adapter.check_base(section)
    own = ModelSection(name_or_path=str(adapter.folder.resolve()))
    with hub_faults(own), refusals("config.json"):
        config = AutoConfig.from_pretrained(adapter.folder, trust_remote_code=False)
    labels = ("id2label", "label2id") if "Classification" in auto_class else ()
    task_config = {name: getattr(config, name) for name in labels}
    loaded = load_model(section, auto_class, task_config, tokenizer, 1, 0, adapter.quantization)
    if not is_checked:
        adapter.check_base(section)
    return loaded


def whole_shape(parameter: Any) -> tuple[int, ...]:
    """Return the shape of a whole parameter; ZeRO-3 leaves an empty one in its place and keeps the shape."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def adapter_tensors(model: Any, name: str = "default") -> dict[str, str]:
    """Return the parameters of an adapter: by the name in its file the name in ``model``, a ``PeftModel``."""
    import torch
    from peft.utils.save_and_load import get_peft_model_state_dict

    if model.peft_config[name].is_prompt_learning:
        return {"prompt_embeddings": f"prompt_encoder.{name}.embedding.weight"}
    marks = {parameter: torch.empty(whole_shape(value), device="meta") for parameter, value in model.named_parameters()}
    names = {id(mark): parameter for parameter, mark in marks.items()}
    found = get_peft_model_state_dict(model, state_dict=marks, adapter_name=name, save_embedding_layers=False)
    tensors = {key: names[id(mark)] for key, mark in found.items()}
    return {key: parameter for key, parameter in tensors.items() if REPLACED not in parameter}


def put_adapter(model: Any, adapter: Adapter, name: str = "default") -> Any:
    """Put ``adapter`` on its base, or beside the adapters that are there, and return the ``PeftModel``, all frozen.

    Raises:
        BadInput: A tensor of it finds no place, or a place no tensor, or its files were changed.
        RequirementMissing: peft is not installed.
    """
    require("peft", f"the adapter {adapter.folder}")
    refuse_changed(adapter.folder, adapter.files)
    from peft import PeftConfig, PeftModel, get_peft_model
    from safetensors import safe_open

    try:
        with warnings.catch_warnings(), safe_open(adapter.folder / ADAPTER_WEIGHTS, framework="numpy") as file:
            warnings.simplefilter("ignore")  # what peft warns of is refused below
            if not isinstance(model, PeftModel):
                config = PeftConfig.from_pretrained(str(adapter.folder))
                config.inference_mode = True
                model = get_peft_model(model, config, adapter_name=name)
            device = str(next(model.parameters()).device)
            model.load_adapter(str(adapter.folder), name, torch_device=device)
            held = set(file.keys())
    except (OSError, BadInput):
        raise
    except Exception as error:  # peft and torch raise RuntimeError, ValueError and errors of their own
        reason = (
            f"{error.args[0]} has no tensor"
            if isinstance(error, KeyError)
            else (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
        )
        what = f"the adapter does not fit its base: {reason}"
        raise BadInput(Problem(str(adapter.folder), "", what, "", "give --base DIR, or copy the run again")) from None
    places = set(adapter_tensors(model, name))
    faults = [f"{key} has no tensor" for key in sorted(places - held)]
    faults += [f"{key} has no place" for key in sorted(held - places)]
    if faults:
        what = f"the adapter does not fit its base: {faults[0]} ({len(faults)} in all)"
        raise BadInput(Problem(str(adapter.folder), "", what, "", "give --base DIR, or copy the run again"))
    model.requires_grad_(False)
    return model.eval()


def merged_model(adapter: Adapter, tokenizer: Any, elsewhere: Path | None = None) -> "PreTrainedModel":
    """Return the base with the adapter taken up into its weights: a plain model in fp32, on the CPU.

    Raises:
        BadInput: The base is another one, or learned vectors cannot be merged.
    """
    return merge_adapter(unmerged_model(adapter, tokenizer, elsewhere))


def unmerged_model(adapter: Adapter, tokenizer: Any, elsewhere: Path | None = None) -> Any:
    """Return the adapter on its base in fp32 on the CPU, ready to be merged, a ``PeftModel``.

    A base in 4 bits is brought back to fp32: merged in 4 bits, the adapter would be rounded away.

    Raises:
        BadInput: The base is another one, or learned vectors cannot be merged.
    """
    refuse_prompt(adapter)
    model = load_base(adapter, tokenizer, elsewhere).model
    if adapter.quantization is not None:
        packed = {name for name, parameter in model.named_parameters() if type(parameter).__name__ == "Params4bit"}
        held = dict(model.dequantize().float().cpu().named_parameters())
        plain = replace(adapter, base=adapter.base.model_copy(update={"quantization": None}))
        model = load_base(plain, tokenizer, elsewhere).model
        _fill(model, held, packed)
    model = model.float().cpu()
    _untie(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are no longer shared, which merge_adapter() settles
        return put_adapter(model, adapter)


def merge_adapter(model: Any) -> "PreTrainedModel":
    """Return the base of ``model``, from :func:`unmerged_model`, with the adapter taken up into its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = model.merge_and_unload(safe_merge=True).eval()
    _tie_again(merged)
    return merged


def _fill(model: Any, weights: Mapping[str, Any], packed: set[str]) -> None:
    """Put ``weights`` into ``model``; those of a Conv1D have been turned round where they were ``packed``."""
    import torch
    from transformers.pytorch_utils import Conv1D

    turned = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)} & packed
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name].T if name in turned else weights[name])


def _untie(model: Any) -> None:
    """Give the output of a language model weights of its own, where it shares those of its input."""
    import torch

    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is words.weight:
        output.weight = torch.nn.Parameter(words.weight.detach().clone())


def _tie_again(model: Any) -> None:
    """Share the weights of input and output where they are the same; else the config says that they are two."""
    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    if output is None:
        return
    model.config.tie_word_embeddings = output.weight.equal(words.weight)
    if model.config.tie_word_embeddings:
        output.weight = words.weight


def refuse_prompt(adapter: Adapter) -> None:
    """Refuse to merge what is no change of weights.

    Raises:
        BadInput: It is learned vectors.
    """
    if adapter.is_prompt:
        what = f"{adapter.method['name']} cannot be merged: it learns vectors before the text, and changes no weight"
        remedy = "export the adapter alone, and predict with it"
        raise BadInput(Problem(str(adapter.folder), "method.name", what, "lora or qlora", remedy))


def merged_base(folder: Path | str) -> "PreTrainedModel | None":
    """Return the adapter in ``folder`` merged into its base, whole on every rank; None where it holds no adapter.

    Args:
        folder: A model's or an adapter's folder, or a name of the hub.

    Raises:
        BadInput: The adapter cannot be merged, or its base is not there.
    """
    if not is_adapter(Path(folder)):
        return None
    from finelaunch.models.load import load_tokenizer

    tokenizer = load_tokenizer(ModelSection(name_or_path=str(folder)))
    with built_whole():
        return merged_model(read_adapter(Path(folder)), tokenizer)


@contextmanager
def built_whole() -> Iterator[None]:
    """Have models built whole under ZeRO-3 too, and cut when they are prepared.

    Weights that are drawn while they are cut are others than those of every other engine with the same seed, and what
    is merged or packed into 4 bits must be there as a whole.
    """
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    config = reference() if reference is not None else None
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None:
            deepspeed.set_hf_deepspeed_config(config)
