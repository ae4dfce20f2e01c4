"""What is run of a task, and in which order: the check, the starts, then full trainings, a step each in turn."""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import equality
import examples
from contestants import AGAIN, CONTESTANTS, Call, environment, process
from figures import Results, checkpoint_bytes, rates
from processes import Crash, Process, Seen, in_turn
from rows import Work

EXAMPLE = "example"


def say(text: str) -> None:
    print(text, flush=True)


class Bench:
    """One call of the command.

    Args:
        options: Its options.
        folder: Where everything is written.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder

    def measure(self, work: Work) -> Results:
        """Return what the contestants have shown on a task."""
        results = Results(work.name)
        self.starts(work, results)
        if not results.void:
            self.trainings(work, results)
        shutil.rmtree(self.folder / f"caches-{work.name}", ignore_errors=True)
        return results

    def rates_of(self, work: Work) -> dict[str, list[Seen]]:
        """Return trainings alone, without evaluation and checkpoint, in turns."""
        found: dict[str, list[Seen]] = {}
        for turn in range(self.options.repetitions):
            for name in rotated(CONTESTANTS, turn):
                call = Call(
                    name, steps=self.options.steps, start_only=True, batch=work.batch, device=self.options.device
                )
                seen = self.run(work, call, f"rates-{name}-{turn}", self.folder / f"caches-{work.name}" / name)
                shutil.rmtree(seen.out, ignore_errors=True)
                found.setdefault(name, []).append(seen)
                say(f"{work.folder.name}: {name}, turn {turn + 1}: {rates(seen.probe)[1]:.0f} tokens/s")
        return found

    def starts(self, work: Work, results: Results) -> None:
        """Check that all do the same work, and start them with empty and with full caches.

        The first start with empty caches is the check itself.
        """
        options = self.options
        for turn in range(max(options.starts, 1)):
            caches = self.folder / f"caches-{work.name}-{turn}"
            if turn == 0:
                how = options.timeout, options.threads, options.device
                seen = equality.check(work, self.folder, caches, options.check_steps, *how)
                probes = {name: one.probe for name, one in seen.items()}
                results.difference, results.void = equality.compare(probes)
                say(f"{work.name}: same work: {results.void or f'losses differ by {results.difference:.1e} at most'}")
                for name, one in seen.items():
                    results.cold.setdefault(name, []).append(one)
                if results.void:
                    return
            for kind in ("cold", "warm")[turn == 0 : 1 + min(options.starts, 1)]:
                for name in rotated(CONTESTANTS, turn):
                    call = Call(name, "many", 1, start_only=True, batch=equality.BATCH, device=options.device)
                    seen_one = self.run(work, call, f"{kind}-{name}-{turn}", caches / name)
                    getattr(results, kind).setdefault(name, []).append(seen_one)
                    first, laps = seen_one.to_first_step, seen_one.lap("prepare")
                    say(f"{work.name}: {kind} start, {name}: preprocessing {laps:.2f} s, first step at {first:.1f} s")
            shutil.rmtree(caches, ignore_errors=True)

    def trainings(self, work: Work, results: Results) -> None:
        """Train two epochs of the few rows with every contestant, a step each in turn.

        Raises:
            Crash: One did not end well, which was not the example script.
        """
        names = [*CONTESTANTS, AGAIN]
        if self.options.examples is not None:
            names.append(EXAMPLE)
        for turn in range(self.options.repetitions):
            processes, failed = {}, {}
            for name in rotated(names, turn):
                label = f"{name.replace(' ', '-')}-{turn}"
                caches = self.folder / f"caches-{work.name}" / name.split()[0]
                keep = name == "plain" and turn == 0
                try:
                    processes[name] = self.training(work, name, label, caches, keep)
                except Crash as error:
                    failed[name] = error
            found = {**dict(zip(processes, in_turn(list(processes.values())), strict=True)), **failed}
            for name, seen in found.items():
                if isinstance(seen, Crash):
                    if name != EXAMPLE:
                        raise seen
                    results.example = f"failed: {seen}"
                    say(f"{work.name}: {results.example}")
                    names.remove(name)
                    continue
                if name == EXAMPLE:
                    seen = replace(seen, metrics=examples.figures(seen.out))
                results.trained.setdefault(name, []).append(self.weighed(seen))
                samples, tokens = rates(seen.probe)
                say(f"{work.name}: {name}, turn {turn + 1}: {samples:.2f} samples/s, {tokens:.0f} tokens/s")
                if name == "plain" and turn == 0 and work.name == "squad":
                    results.postprocess = self.postprocess(work, seen.out)
                shutil.rmtree(seen.out, ignore_errors=True)

    def training(self, work: Work, name: str, label: str, caches: Path, keep_logits: bool) -> Process:
        """Return the process of a full training.

        Raises:
            Crash: There is no such example script.
        """
        out, options = self.folder / f"{work.name}-{label}", self.options
        if name != EXAMPLE:
            call = Call(name, steps=options.steps, batch=work.batch, device=options.device, keep_logits=keep_logits)
            return process(work, call, out, caches, options.timeout, options.threads)
        script = examples.find_script(options.examples, work.shape.example)
        if script is None:
            raise Crash(f"{options.examples} has no {work.shape.example}")
        files = examples.prepare(work, self.folder)
        line = examples.words(work, script, files, out, work.batch, options.steps, options.device)
        own = environment(caches, options.device, options.threads)
        return Process(line, own, out, options.timeout, work.shape.example, cwd=files)

    def run(self, work: Work, call: Call, label: str, caches: Path) -> Seen:
        out, options = self.folder / f"{work.name}-{label}", self.options
        return self.weighed(process(work, call, out, caches, options.timeout, options.threads).run())

    def weighed(self, seen: Seen) -> Seen:
        size = checkpoint_bytes(seen.out)
        return replace(seen, metrics={**seen.metrics, "checkpoint_bytes": size} if size else seen.metrics)

    def postprocess(self, work: Work, out: Path) -> list[tuple[float, float]]:
        """Return seconds of the loop and of the search on the logits that the plain script has kept, in turns."""
        script = str(Path(__file__).parent / "postprocess.py")
        given = [out / "logits.npz", work.rows("validation"), work.model, work.max_length, 5]
        line = [sys.executable, script, *map(str, given)]
        label = self.folder / f"{work.name}-postprocess"
        own = environment(self.folder, self.options.device, self.options.threads)
        Process(line, own, label, self.options.timeout, "post-processing").run()
        found = json.loads(label.with_name(f"{label.name}.log").read_text().splitlines()[-1])
        equal = f"{found['equal']} of {found['questions']} answers equal"
        say(f"{work.name}: post-processing of {found['windows']} windows, {equal}")
        return [(loop, search) for loop, search in found["seconds"]]


def rotated(names, turn: int) -> list[str]:
    """Return the names in the order of a turn: ABC, BCA, CAB."""
    place = turn % len(names)
    return [*names[place:], *names[:place]]
