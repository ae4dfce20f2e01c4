"""A run's model, taken out of the run: the adapter alone, the adapter merged into its base, or the whole model.

Written beside its place, loaded again in a fresh process, and only then renamed to it.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput, FinelaunchError, Problem
from finelaunch.evaluation.finished import FinishedModel, load_finished
from finelaunch.evaluation.proof import Expected, expected_of, inputs_for, logits_of, prove
from finelaunch.models.adapters import (
    BASE_FOLDER,
    is_adapter,
    merge_adapter,
    read_adapter,
    refuse_prompt,
    unmerged_model,
)
from finelaunch.models.stated import FACTS, hashes_of
from finelaunch.run.files import is_full_disk, plain_mode, write_json, write_text
from finelaunch.run.log import quiet_libraries

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "README.md")
"""What belongs to a model folder: weights, configs, tokenizer and card."""
SHARE_OF_EFFECT = 0.5
"""Of what the adapter changes: a merged model that differs by more is nearer to the base than to the adapter."""
LEAST_EFFECT = 1e-5
"""Of the largest logit: an adapter that changes less cannot be told from rounding in fp32."""


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Args:
        folder: Where it lies.
        kind: ``adapter``, ``merged`` or ``model``.
        difference: The largest difference of the logits, loaded in a fresh process, from those of the run's model; of
            a merged one, from those of the adapter beside the same weights in fp32.
        logits_std: The standard deviation of those logits, to compare it with.
        tolerance: What the difference may be at most.
        from_4_bits: The largest difference of a merged model's logits from those of the base in 4 bits that it was
            trained on, which nothing is refused by; None where that was not in 4 bits.
    """

    folder: Path
    kind: str
    difference: float
    logits_std: float
    tolerance: float
    from_4_bits: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return it for JSON."""
        figures = {"max_logit_difference": self.difference, "logits_std": self.logits_std, "tolerance": self.tolerance}
        if self.from_4_bits is not None:
            figures["max_logit_difference_from_4_bits"] = self.from_4_bits
        return {"folder": str(self.folder), "kind": self.kind, **figures}

    def sentence(self) -> str:
        """Return what a user is told."""
        said = {"adapter": "the adapter", "merged": "the adapter merged into its base", "model": "the model"}[self.kind]
        proof = f"largest difference {self.difference:.3g} where {self.tolerance:.3g} is permitted"
        packed = "" if self.from_4_bits is None else f"; from the model in 4 bits it differs by {self.from_4_bits:.3g}"
        return (
            f"{self.folder}: {said}, proven in a fresh process by its logits ({proof}; their std "
            f"{self.logits_std:.3g}{packed})"
        )


def export_model(
    folder: Path, to: Path, merge: bool, base: Path | None, card: Callable[[str, Mapping[str, Any]], str]
) -> Exported:
    """Write the model in ``folder`` to ``to``, proven to be the same.

    Args:
        folder: The folder of a whole model or of an adapter.
        to: A folder that is not there yet, or empty.
        merge: An adapter is merged into its base.
        base: A copy of the adapter's base; None: where it was when it was trained.
        card: Makes the README.md of a merged model from the adapter's and from what ``finelaunch.json`` states.

    Raises:
        BadInput: There is nothing to merge, ``to`` holds something, or the model cannot be loaded.
        FinelaunchError: What was written is not the same model; nothing is left of it.
    """
    if merge and not is_adapter(folder):
        what = f"{folder} is a whole model: there is nothing to merge"
        raise BadInput(Problem("command line", "--merge", what, "an adapter", "leave it out"))
    if merge:
        refuse_prompt(read_adapter(folder))
    if to.resolve().is_relative_to(folder.resolve()):
        what = f"{to} lies in {folder}, the model's own folder"
        raise BadInput(Problem("command line", "--to", what, "", "give --to DIR, a folder elsewhere"))
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BadInput(Problem("command line", "--to", f"{to} is there and not empty", "", "give another folder"))
    quiet_libraries()
    finished = load_finished(folder, base)
    draft = to.absolute().with_name(f".{to.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        write = _write_merged if merge else _write_copy
        exported = write(finished, folder, draft, base, card)
        with suppress(FileNotFoundError):
            to.rmdir()
        draft.rename(to.absolute())
    except OSError as error:
        if is_full_disk(error):
            raise
        what = f"{to} cannot be written: {error.strerror or error}"
        raise BadInput(Problem("command line", "--to", what, "", "give another folder")) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return replace(exported, folder=to)


def _write_copy(finished: FinishedModel, folder: Path, draft: Path, base: Path | None, _: Any) -> Exported:
    """Copy an adapter or a whole model: the files that peft or transformers take, and ``finelaunch.json``."""
    expected = expected_of(finished.model, inputs_for(finished.model, finished.tokenizer))
    copy_model(folder, draft)
    if (folder / BASE_FOLDER).is_dir():
        (draft / BASE_FOLDER).mkdir()
        copy_model(folder / BASE_FOLDER, draft / BASE_FOLDER)
    if is_adapter(folder):
        write_json(draft / FACTS, {**_portable(finished.stated), "files": hashes_of(draft)})
    difference = prove(draft, expected, base or _place_of_base(folder))
    kind = "adapter" if is_adapter(folder) else "model"
    return Exported(draft, kind, difference, float(expected.logits.std()), expected.tolerance)


def _portable(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``finelaunch.json`` states without the place that the base has on this machine."""
    return {**stated, "base": {key: value for key, value in stated["base"].items() if key != "path"}}


def _place_of_base(folder: Path) -> Path | None:
    """Return where the base of the adapter in ``folder`` lies on this machine, if its name alone does not say."""
    adapter = read_adapter(folder) if is_adapter(folder) else None
    return Path(str(adapter.section().name_or_path)) if adapter is not None and adapter.base.is_folder else None


def copy_model(folder: Path, to: Path) -> None:
    """Copy what belongs to a model from ``folder`` to ``to``, and nothing below it."""
    for file in sorted({file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, to / file.name)


def _write_merged(
    finished: FinishedModel, folder: Path, draft: Path, base: Path | None, card: Callable[[str, Mapping[str, Any]], str]
) -> Exported:
    """Write base and adapter as one plain model in fp32."""
    adapter = read_adapter(folder)
    inputs = inputs_for(finished.model, finished.tokenizer)
    trained = logits_of(finished.model, inputs)
    unmerged = unmerged_model(adapter, finished.tokenizer, base)
    before = Expected(inputs, logits_of(unmerged, inputs), "")
    with unmerged.disable_adapter():
        effect = before.difference(logits_of(unmerged, inputs))
    merged = merge_adapter(unmerged)
    after = expected_of(merged, inputs)
    difference, tolerance = before.difference(after.logits), _permitted(before, effect)
    if not difference <= tolerance:
        what = f"the merged model's logits differ by {difference:.3g} from the adapter's, more than {tolerance:.3g}"
        raise FinelaunchError(f"export: {what}; nothing was written")
    from_4_bits = None if adapter.quantization is None else after.difference(trained)
    merged.save_pretrained(draft, save_original_format=False)
    for file in draft.glob("*.safetensors"):
        plain_mode(file)
    finished.tokenizer.save_pretrained(draft)
    exported = Exported(draft, "merged", difference, float(before.logits.std()), tolerance, from_4_bits)
    figures = {key: value for key, value in exported.facts().items() if key not in ("folder", "kind")}
    own = {key: value for key, value in _portable(finished.stated).items() if key != "files"}
    stated = {**own, "merged": {"dtype": "fp32", **figures}}
    readme = folder / "README.md"
    write_text(draft / "README.md", card(readme.read_text(encoding="utf-8") if readme.exists() else "", stated))
    write_json(draft / FACTS, stated)
    prove(draft, after)
    return exported


def _permitted(before: Expected, effect: float) -> float:
    """Return what a merged model's logits may differ by, where the adapter changes those of its base by ``effect``."""
    if effect < LEAST_EFFECT * float(before.logits.abs().max()):
        return before.tolerance
    return min(before.tolerance, SHARE_OF_EFFECT * effect)
