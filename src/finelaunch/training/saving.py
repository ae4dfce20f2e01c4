"""Writing checkpoints that count: the Trainer writes the files, every rank hashes its own while training goes on.

The manifest is published at the first step boundary at which all ranks have hashed, by the first one. Older checkpoints
are deleted after that, never before.
"""

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from finelaunch.errors import FinelaunchError
from finelaunch.run.directory import RunDirectory
from finelaunch.run.files import read_lines
from finelaunch.run.log import warn
from finelaunch.run.ranks import Ranks, gather
from finelaunch.training.manifest import NAME, checkpoints_in, describe_files, discard, publish, surplus
from finelaunch.training.selection import course, ranking


@dataclass
class _Draft:
    """A checkpoint that was written and does not count yet."""

    path: Path
    facts: Mapping[str, Any]
    begun: float
    blocked_seconds: float
    files: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None
    thread: threading.Thread | None = None


class Saving(TrainerCallback):
    """Makes what the Trainer saves count.

    Args:
        run: The run directory.
        ranks: This process among all.
        facts: What every manifest states of the run.
        losses: Gives the losses since the last log line, of all ranks; every rank calls it.
        limit: How many checkpoints are kept beside the best; None: all.
        metric: The figure on data.validation by which the best is known.
        saved_step: The step of the run's own checkpoint that training goes on from.
        aside: What is deleted once a newer checkpoint is whole.
    """

    def __init__(
        self,
        run: RunDirectory,
        ranks: Ranks,
        facts: Mapping[str, Any],
        losses: Callable[[], list[float]],
        limit: int | None,
        metric: str,
        saved_step: int | None,
        aside: Sequence[Path],
    ) -> None:
        self.run = run
        self.ranks = ranks
        self.facts = facts
        self.losses = losses
        self.limit = limit
        self.metric = metric
        self.saved_step = saved_step
        """The step of the last checkpoint that was written, whether it counts yet or not."""
        self._aside = list(aside)
        self._begun = 0.0
        self._writing: Path | None = None
        self._draft: _Draft | None = None
        self._rotation: threading.Thread | None = None
        self._seconds = [0.0, 0.0]

    def begin(self, path: Path, check: Callable[[], None]) -> None:
        """Prepare the folder that the Trainer is about to write, once ``check`` has passed; every rank calls this."""
        self.finish()
        self._begun = time.perf_counter()
        check()
        self.wait_for_rotation()
        if self.ranks.is_first and path.exists():
            discard(path)
        gather(None)  # no rank writes into what is just being deleted
        self._writing = path

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hash what this rank has written, in the background."""
        assert self._writing is not None
        facts = {"step": state.global_step, **self.facts, "losses": self.losses()}
        self._draft = _Draft(self._writing, facts, self._begun, time.perf_counter() - self._begun)
        self._draft.thread = threading.Thread(target=self._describe, args=(self._draft,), name="hashing", daemon=True)
        self._draft.thread.start()
        self.saved_step, self._writing = state.global_step, None

    def wait_for_rotation(self) -> None:
        """Wait until what is no longer to be kept is deleted."""
        if self._rotation is not None:
            self._rotation.join()

    def is_busy(self) -> bool:
        """Return whether this rank still hashes."""
        return self._draft is not None and self._draft.thread is not None and self._draft.thread.is_alive()

    def finish(self) -> None:
        """Publish the checkpoint that was written last, if it does not count yet; every rank calls this."""
        draft, self._draft = self._draft, None
        if draft is None or draft.thread is None:
            return
        since = time.perf_counter()
        draft.thread.join()
        said = gather(str(draft.error) if draft.error else None)
        if draft.error is not None:
            raise draft.error
        for rank, error in enumerate(said):
            if error is not None:
                raise FinelaunchError(f"rank {rank} could not finish {draft.path}: {error}")
        parts = gather(draft.files)
        if not self.run.writes:
            return
        files = {name: said for part in parts for name, said in part.items()}
        self._writing = draft.path  # what cannot be published is no more than a part
        publish(draft.path, draft.facts, files)
        self._writing = None
        moment = time.perf_counter()
        blocked, total = round(draft.blocked_seconds + moment - since, 3), round(moment - draft.begun, 3)
        self._seconds = [self._seconds[0] + blocked, self._seconds[1] + total]
        num_bytes = sum(file["bytes"] for file in files.values())
        self.run.record(
            "saved", step=draft.facts["step"], bytes=num_bytes, blocked_seconds=blocked, total_seconds=total
        )
        self._rotate()

    def seconds(self) -> dict[str, float]:
        """Return for how long checkpoints have kept training waiting and taken in all, since the last call."""
        blocked, total = self._seconds
        self._seconds = [0.0, 0.0]
        return {"checkpoint_blocked_seconds": round(blocked, 3), "checkpoint_total_seconds": round(total, 3)}

    def abandon(self) -> None:
        """Delete what a save that failed has written so far: it may be what fills the disk."""
        if self._writing is not None and not (self._writing / NAME).exists():
            shutil.rmtree(self._writing, ignore_errors=True)

    def _describe(self, draft: _Draft) -> None:
        try:
            draft.files = describe_files(draft.path, self.ranks.rank)
        except BaseException as error:  # raised where the draft is published, in the main thread
            draft.error = error

    def _rotate(self) -> None:
        """Delete what is no longer to be kept, in the background: the manifests at once, then the rest."""
        counting = [path for path in checkpoints_in(self.run.checkpoints) if (path / NAME).exists()]
        away = [*self._aside, *surplus(counting, self.limit, self._best())]
        self._aside = []
        try:
            for path in away:
                (path / NAME).unlink(missing_ok=True)
        except OSError as error:
            warn(f"{error.filename} cannot be deleted: {error.strerror}")
            return
        if away:
            self._rotation = threading.Thread(target=lambda: [discard(path) for path in away], name="rotation")
            self._rotation.start()

    def _best(self) -> list[Path]:
        """Return the checkpoint with the best figures, which is not deleted, if there is one."""
        best = ranking(course(read_lines(self.run.events)), self.metric)
        paths = (self.run.checkpoints / f"checkpoint-{one.step}" for one in best)
        return [path for path in paths if (path / NAME).exists()][:1]
