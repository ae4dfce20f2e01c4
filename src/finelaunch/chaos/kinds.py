"""The kinds of fault, in one table."""

import signal
from collections.abc import Mapping

from finelaunch.chaos.attempt import Attempt, Fault, NotAsExpected, NotRun, expect_stop
from finelaunch.chaos.damage import DAMAGE, files_to_damage
from finelaunch.chaos.evidence import MANIFEST, checkpoints, fault_of, published, read_object
from finelaunch.chaos.small_disk import SmallDisk
from finelaunch.chaos.trials import step_at
from finelaunch.chaos.watch import is_partial
from finelaunch.errors import EXIT_DONE, EXIT_STOPPED

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
PASSED_OVER = "passed over"
ENDED_BEFORE = "the run ended before the moment came"
MAX_STOPS = 6
"""So many stops must do for two checkpoints."""


class Kill:
    """SIGKILL, in turns while a checkpoint is being written and at any other moment between two steps."""

    def run(self, attempt: Attempt) -> None:
        """Kill once, and start again."""
        trial, facts = attempt.trial, attempt.facts
        where = trial.one_of("where", ("step", "save")) if facts.saves else "step"
        whom = trial.one_of("whom", ("process",) if attempt.bench.num_ranks == 1 else ("rank", "all"))
        moment = trial.moment(among=2 if facts.saves else 1)
        step = step_at(moment, 1, max(facts.num_steps - 1, 1), facts.num_epochs)
        attempt.start()
        if where == "save":
            step = next((saved for saved in facts.saves if saved >= step), facts.saves[-1])
            folder = attempt.run.checkpoints / f"checkpoint-{step}"
            came = attempt.wait_for(folder.exists)
            delay = trial.random("delay").random() * facts.save_seconds
            came = came and attempt.wait(delay, unless=(folder / MANIFEST).exists)
        else:
            came = attempt.wait_until(step, trial.random("delay").random())
        if not came:
            raise NotRun(ENDED_BEFORE)
        attempt.strike(signal.SIGKILL, whom)
        attempt.expect(attempt.ended() != EXIT_DONE, "answered 0 although it was killed")
        newest = max(published(attempt.run), default=0)
        saving = [step for step, path in checkpoints(attempt.run).items() if is_partial(path) and step > newest]
        if saving:  # an older one without a manifest was just being deleted
            attempt.about.append(f"inside the save of checkpoint-{saving[-1]}")
        attempt.notes |= {"where": where, "inside_save": bool(saving)}
        attempt.finish()


class Signal:
    """A signal that asks for a stop, to one process or several, at any time of a run."""

    def run(self, attempt: Attempt) -> None:
        """Signal once, hold the answer against what is promised, and start again."""
        trial, facts = attempt.trial, attempt.facts
        alone = attempt.bench.num_ranks == 1
        whom = trial.one_of("whom", ("process", "group") if alone else ("rank", "ranks", "launcher"))
        number = trial.one_of("signal", STOPS)
        phases = ("start", "training", "evaluation", "end") if facts.evaluations else ("start", "training", "end")
        phase = trial.one_of("phase", phases)
        step = step_at(trial.moment(len(phases)), 1, max(facts.num_steps - 1, 1), facts.num_epochs)
        fraction = trial.random("delay").random()
        attempt.start()
        if phase == "start":
            came = attempt.wait_for(lambda: bool(attempt.watch.events("started")))
            came = came and attempt.wait(fraction * facts.start_seconds, lambda: attempt.watch.step() > 0)
        elif phase == "training":
            came = attempt.wait_until(step, fraction)
        elif phase == "evaluation":
            step = next((known for known in facts.evaluations if known >= step), facts.evaluations[-1])
            came = attempt.wait_until(step) and attempt.wait(
                fraction * facts.evaluate_seconds,
                lambda: any(event.get("step") == step for event in attempt.watch.events("evaluated")),
            )
        else:
            came = attempt.wait_until(facts.num_steps) and attempt.wait(fraction * facts.end_seconds)
        if not came:
            raise NotRun(ENDED_BEFORE)
        landed, last = attempt.phase(), attempt.strike(number, whom)
        code = attempt.ended()
        attempt.notes |= {"signal": number.name, "whom": whom, "phase": phase, "landed": landed, "exit_code": code}
        answers = (EXIT_STOPPED, EXIT_DONE) if attempt.run.finished() else (EXIT_STOPPED,)
        expect_stop(attempt, last, answers)
        if steps := published(attempt.run):
            fault = fault_of(checkpoints(attempt.run)[steps[-1]])
            attempt.expect(fault is None, f"the checkpoint left behind is not whole: {fault}")
        attempt.finish()


class Corruption:
    """One file of the newest of several checkpoints damaged while the run is stopped."""

    def run(self, attempt: Attempt) -> None:
        """Stop until there are two checkpoints, damage the newest, and start again."""
        trial, facts = attempt.trial, attempt.facts
        second = facts.saves[1] if len(facts.saves) > 1 else 2
        step = step_at(trial.moment(), min(second, facts.num_steps), max(facts.num_steps - 1, 1), facts.num_epochs)
        for _ in range(MAX_STOPS):
            attempt.start()
            if not attempt.wait_until(max(step, attempt.watch.step_before + 1), trial.random("delay").random()):
                raise NotRun("the run ended before there were two checkpoints")
            last = attempt.strike(signal.SIGTERM, "process" if attempt.bench.num_ranks == 1 else "launcher")
            attempt.ended()
            expect_stop(attempt, last, (EXIT_STOPPED, EXIT_DONE) if attempt.run.finished() else (EXIT_STOPPED,))
            if len(published(attempt.run)) > 1:
                break
        else:
            raise NotRun(f"there were not two checkpoints after {MAX_STOPS} stops (training.save_total_limit?)")
        newest = checkpoints(attempt.run)[published(attempt.run)[-1]]
        draw = trial.random("damage")
        how = trial.one_of("how", tuple(DAMAGE))
        file = draw.choice(files_to_damage(newest))
        DAMAGE[how](newest / file, draw)
        what = f"{newest.name}/{file} {how}"
        attempt.about.append(what)
        attempt.notes |= {"damage": how, "file": file}
        starts_before = len(attempt.run_events("training"))
        attempt.finish()
        warnings = read_object(attempt.run.manifest).get("warnings", [])
        said = any(newest.name in text and PASSED_OVER in text for text in warnings)
        attempt.expect(said, f"{what}: no warning says that it is passed over")
        starts = attempt.run_events("training")[starts_before:]
        damaged_step = int(newest.name.rpartition("-")[2])
        older = all(event.get("from_step", 0) < damaged_step for event in starts)
        attempt.expect(bool(starts) and older, f"{what}: the run did not go on from an older checkpoint")


class Chain:
    """Many stops in one run.

    Args:
        num_stops: How many.
    """

    def __init__(self, num_stops: int = 10) -> None:
        self.num_stops = num_stops

    def run(self, attempt: Attempt) -> None:
        """Stop and start again, from the first step to the last."""
        draw, last_step = attempt.trial.random("chain"), attempt.facts.num_steps
        num_stops = 0
        for number in range(self.num_stops):
            planned = 1 + int((number + draw.random()) / self.num_stops * (last_step - 1))
            attempt.start()
            step = max(planned, attempt.watch.step_before + 1)
            if step > last_step or not attempt.wait_until(step, draw.random()):
                break
            last = attempt.strike(signal.SIGTERM, "process" if attempt.bench.num_ranks == 1 else "launcher")
            code = attempt.ended()
            expect_stop(attempt, last, (EXIT_STOPPED, EXIT_DONE) if attempt.run.finished() else (EXIT_STOPPED,))
            num_stops += 1
            if code not in (EXIT_STOPPED, EXIT_DONE):
                raise NotAsExpected(f"stop {num_stops} of {self.num_stops} answered {code}")
        attempt.ended()
        attempt.about[:] = [f"stopped {num_stops} times by SIGTERM"]
        attempt.notes["num_stops"] = num_stops
        attempt.finish()


KINDS: Mapping[str, Fault] = {
    "kill": Kill(),
    "signal": Signal(),
    "corruption": Corruption(),
    "disk": SmallDisk(),
    "chain": Chain(),
}
"""Every kind of fault, by its name on the command line."""
