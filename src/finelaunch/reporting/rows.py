"""What a run says of its rows: of the data before it trains, and of what training has made worse."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finelaunch.errors import BadInput
from finelaunch.preparation import Prepared
from finelaunch.reporting.figures import forgotten, forgotten_texts
from finelaunch.run import log
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_json

_ABOUT = ("path", "subset", "split", "revision", "source", "licence", "citation", "fingerprint", "num_examples")
_READ_BY = ("path", "subset", "split", "revision", "columns", "name")
"""Keys of a source that decide which rows are read, and what they are called."""


def report_data(run: RunDirectory, prepared: Prepared, elapsed: float) -> None:
    """Write what is known of the data, and say it in a line a split and a line a source."""
    write_json(run.data_report, prepared.report)
    splits = prepared.report["splits"]
    run.note(data={name: _in_manifest(split) for name, split in splits.items()})
    for name, split in splits.items():
        lengths = split["tokens_per_feature"]
        spread = f"{lengths['mean']:.0f} tokens on average, {lengths['max']} at most"
        say = f"data.{name}: {split['num_examples']:,} examples, {split['num_features']:,} features, {spread}"
        log.say(f"{say} ({split['path']})")
        for source, about in split.get("sources", {}).items():
            log.say(f"  {source}: {about['num_taken']:,} examples of {about['num_rows']:,} rows ({about['path']})")
    for split in splits.values():
        if "class_weights" in split:
            each = ", ".join(f"{label} {weight:.3g}" for label, weight in split["class_weights"].items())
            log.say(f"task.class_weights: in the training loss count {each}")
        if "packing" in split:
            log.say(f"task.packing: {split['packing']}")
    for warning in (*prepared.report["warnings"], *_unmeasured(run, splits)):
        if run.warn(warning):
            log.warn(warning)
    log.say(f"data {'found in the cache' if prepared.from_cache else 'prepared'} in {elapsed:.1f} s")


def report_forgotten(run: RunDirectory, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Warn of every source of data.test on which training made the model worse.

    Returns:
        ``forgotten`` as it stands in ``metrics.json``; empty where it was not measured.
    """
    for text in forgotten_texts(metrics):
        if run.warn(text):
            log.warn(text)
    found = forgotten(metrics)
    return {} if found is None else {"forgotten": found}


def _in_manifest(split: Mapping[str, Any]) -> dict[str, Any]:
    about = {key: split.get(key) for key in _ABOUT}
    about |= {key: split[key] for key in ("class_weights", "packing") if key in split}
    return {**about, "sources": split["sources"]} if "sources" in split else about


def _unmeasured(run: RunDirectory, splits: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a run that goes on from an earlier one does not show what it forgets of that one's data.test."""
    stated = run.stated()
    earlier = _earlier_run(stated["model"].get("name_or_path") or "")
    if earlier is None:
        return
    before = earlier.read_manifest().get("data", {}).get("test") or {}
    rows = earlier.stated()["data"].get("test") or []
    present = _fingerprints(splits.get("test") or {})
    pairs = zip(rows if isinstance(rows, list) else [rows], _fingerprints(before), strict=False)
    missing = [_words(source) for source, fingerprint in pairs if fingerprint not in present]
    if missing:
        now = stated["data"].get("test") or []
        whole = [_words(source) for source in (now if isinstance(now, list) else [now])] + missing
        paths = ", ".join(source["path"] for source in missing)
        text = f"what is forgotten of {earlier.path} is not measured: its data.test ({paths}) is not among data.test"
        yield f"{text}; to measure it: data.test='{json.dumps(whole, ensure_ascii=False)}'"
    elif before and not stated["evaluation"]["base"]:
        yield f"what is forgotten of {earlier.path} is not measured: evaluation.base is false"


def _earlier_run(name: str) -> RunDirectory | None:
    """Return the run that a model's path is in, where it is one that can be read."""
    with suppress(OSError, RuntimeError, ValueError):
        path = Path(name).expanduser()
        for folder in (path, path.parent) if name else ():
            run = RunDirectory(folder)
            if run.recipe.is_file() and (run.model_facts == path / "finelaunch.json" or folder == path):
                with suppress(BadInput):
                    run.stated()
                    return run
    return None


def _fingerprints(split: Mapping[str, Any]) -> list[str]:
    """Return the fingerprint of each source of a split, as report and manifest keep them."""
    sources = split.get("sources", {"": split}).values()
    return [about["fingerprint"] for about in sources if about.get("fingerprint")]


def _words(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: source[key] for key in _READ_BY if source.get(key)}
