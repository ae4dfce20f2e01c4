"""The ``model`` section of a recipe."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from finelaunch.section.base import Section, SettingError


class TokenizerSection(Section):
    """A tokenizer trained on the training text: byte-level BPE, so that no text is unknown to it."""

    vocab_size: int = Field(ge=300, le=200_000, description="entries of the vocabulary, special tokens included")


class ModelSection(Section):
    """What to start from."""

    answers: ClassVar[Mapping[str, str]] = {
        "path": "use model.name_or_path",
        "name": "use model.name_or_path",
        "trust_remote_code": "not offered: code of a model repository is never run",
        "torch_dtype": "weights are held in fp32; precision is launch.precision",
        "dtype": "weights are held in fp32; precision is launch.precision",
        "device_map": "it speaks of the machine: use --on PROFILE",
        "load_in_4bit": "it is a method, and 'full' trains all weights in fp32",
    }

    name_or_path: str | None = Field(
        default=None, min_length=1, description="a folder, package:MODULE/FOLDER, a hub name, or a finished run's model"
    )
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub model")
    init: Literal["pretrained", "scratch"] = Field(default="pretrained", description="where the weights come from")
    config: dict[str, Any] = Field(
        default={}, description="scratch: model_type and its shape; pretrained: values that replace the config's"
    )
    tokenizer: TokenizerSection | None = Field(default=None, description="scratch only: train a tokenizer")

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelSection":
        if self.init == "scratch":
            if self.name_or_path is not None:
                remedy = "leave name_or_path out, or set model.init=pretrained"
                raise SettingError("name_or_path", "has no effect with init: scratch", "", remedy)
            if self.revision is not None:
                raise SettingError("revision", "has no effect with init: scratch", "", "leave it out")
            if self.tokenizer is None:
                raise SettingError("tokenizer", "is missing", "tokenizer: {vocab_size: N} with init: scratch")
            if not isinstance(self.config.get("model_type"), str):
                raise SettingError("config.model_type", "is missing", "a model type such as bert or gpt2")
            if "vocab_size" in self.config:
                raise SettingError("config.vocab_size", "follows from the tokenizer", "", "set tokenizer.vocab_size")
            return self
        if self.name_or_path is None:
            raise SettingError("name_or_path", "is missing", "a folder, package:… or hub name, or init: scratch")
        reason = "pretrained embeddings belong to the vocabulary they were trained with; another one makes them noise"
        if self.tokenizer is not None:
            raise SettingError(
                "tokenizer", "refused for pretrained weights", reason, "leave it out or set init: scratch"
            )
        if "vocab_size" in self.config:
            raise SettingError("config.vocab_size", "refused for pretrained weights", reason, "leave it out")
        return self
