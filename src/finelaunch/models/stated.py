"""What ``finelaunch.json`` beside an adapter states of it, read without trust."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from finelaunch.data.sources import PACKAGE_PREFIX, hash_files
from finelaunch.errors import BadInput, Problem
from finelaunch.models.quantization import Quantization
from finelaunch.section.base import Section, SettingError, build
from finelaunch.section.document import Document

FACTS = "finelaunch.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
COPY_AGAIN = "copy the run again"


class QuantizationFacts(Section):
    """How a base was held.

    ``kept`` names the modules that were not quantised; folders of the first release do not state it.
    """

    type: Literal["nf4", "fp4"]
    double: bool
    compute: Literal["fp32", "bf16", "fp16"]
    kept: list[str] = Field(default=[])


class BaseFacts(Section):
    """What an adapter was trained on.

    ``fingerprint`` is the commit of a hub model or a hash, ``content`` the hash of its files, ``path`` where a local
    one lay.
    """

    name: str | None
    revision: str | None = None
    init: Literal["pretrained", "scratch"]
    config: dict[str, Any] = Field(default={})
    fingerprint: str
    content: str
    quantization: QuantizationFacts | None = None
    auto_class: Literal["AutoModelForQuestionAnswering", "AutoModelForSequenceClassification", "AutoModelForCausalLM"]
    path: str | None = None

    def faults(self) -> Iterator[SettingError]:
        """Yield a pretrained base that has no name."""
        if self.init == "pretrained" and not self.name:
            yield SettingError("name", "is missing", "the name of the pretrained base")

    @property
    def is_folder(self) -> bool:
        """Whether its name is a path of a machine, and neither one of the hub nor of a package."""
        named = self.init == "pretrained" and not str(self.name).startswith(PACKAGE_PREFIX)
        return named and "@" not in self.fingerprint

    @property
    def held(self) -> Quantization | None:
        """How it is held, where that is not fp32."""
        facts = self.quantization
        return Quantization(facts.type, facts.double, facts.compute) if facts else None


class AdapterFacts(Section):
    """What is read of ``finelaunch.json``; ``files`` are the hashes of the adapter's own files."""

    base: BaseFacts
    method: dict[str, Any]
    task: dict[str, Any]
    files: dict[str, str] = Field(default={})

    def faults(self) -> Iterator[SettingError]:
        """Yield a method or a task without a name."""
        for key in ("method", "task"):
            if not isinstance(getattr(self, key).get("name"), str):
                yield SettingError(f"{key}.name", "is missing", "a name")


def read_stated(path: Path) -> AdapterFacts:
    """Return what the ``finelaunch.json`` at ``path`` states.

    Raises:
        BadInput: It is damaged, or of another origin.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(Problem(str(path), "", f"is damaged: {error}", "", COPY_AGAIN)) from None
    known = {key: content[key] for key in AdapterFacts.model_fields if key in content}
    try:
        return build(AdapterFacts, Document(known, name=str(path)))
    except BadInput as error:
        first = error.problems[0]
        raise BadInput(Problem(str(path), first.key, f"is damaged: {first.what}", first.allowed, COPY_AGAIN)) from None


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of an adapter's config and weights, by their names."""
    return {name: hash_files([folder / name], folder) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}


def refuse_changed(folder: Path, stated: dict[str, str]) -> None:
    """Refuse files of an adapter that are not those which were written; without ``stated`` nothing is known.

    Raises:
        BadInput: One was changed.
    """
    found = hashes_of(folder) if stated else {}
    for name, sha256 in found.items():
        if stated.get(name) != sha256:
            raise BadInput(Problem(str(folder / name), "", "was changed since it was written", "", COPY_AGAIN))
