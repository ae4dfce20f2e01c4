"""What a run says of its rows before it trains on them: in the run directory, and in a line a split."""

from finelaunch.preparation import Prepared
from finelaunch.run import log
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import write_json


def report_data(run: RunDirectory, prepared: Prepared, elapsed: float) -> None:
    """Write what is known of the data, and say it in a line a split."""
    write_json(run.data_report, prepared.report)
    about = ("path", "subset", "split", "revision", "source", "licence", "citation", "fingerprint", "num_examples")
    splits = prepared.report["splits"]
    run.note(data={name: {key: split.get(key) for key in about} for name, split in splits.items()})
    for name, split in splits.items():
        lengths = split["tokens_per_feature"]
        spread = f"{lengths['mean']:.0f} tokens on average, {lengths['max']} at most"
        say = f"data.{name}: {split['num_examples']:,} examples, {split['num_features']:,} features, {spread}"
        log.say(f"{say} ({split['path']})")
    for warning in prepared.report["warnings"]:
        if run.warn(warning):
            log.warn(warning)
    log.say(f"data {'found in the cache' if prepared.from_cache else 'prepared'} in {elapsed:.1f} s")
