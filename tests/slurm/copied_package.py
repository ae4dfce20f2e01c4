"""A copy of the package on PYTHONPATH, in which a test may slow down the steps, have a rank fail, and edit the code.

A run is then at a known place when something happens to it, however fast the machine is, and the numbers are those of
the package itself. What the copy obeys is a file that is read at every step, so orders reach jobs that run already.
"""

import json
import os
import shutil
from pathlib import Path

from finelaunch.section.lookup import NOUNS, shipped

SOURCE = Path(__file__).parents[2] / "src" / "finelaunch"
VERSION = "this is the code of the submission"

OBEY = f'''

def _obey(trainer):
    """Wait and fail as the test orders."""
    import json
    import os
    import signal
    import time
    from pathlib import Path

    from finelaunch.run.log import say

    if not hasattr(trainer, "has_said"):
        trainer.has_said = True
        say("{VERSION}")
    orders = json.loads(Path(os.environ["FINELAUNCH_TEST_ORDERS"]).read_text())
    time.sleep(orders["pace_seconds"])
    if (trainer.args.process_index, trainer.state.global_step) != (orders["rank"], orders["step"]):
        return
    if orders["ends"] == "raise":
        raise RuntimeError("the test had this rank fail")
    if orders["ends"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if orders["ends"] == "memory":
        trainer.has_taken = b"x" * 3_000_000_000


def _training_step(self, *given, **named):
    _obey(self)
    return Trainer.training_step(self, *given, **named)


FinelaunchTrainer.training_step = _training_step
'''


class CopiedPackage:
    """A copy of the package below a folder, and the orders that it obeys.

    Args:
        folder: Where it is made; every node must see it.
    """

    def __init__(self, folder: Path) -> None:
        self.source = folder / "copied" / "src"
        self.orders = folder / "copied" / "orders.json"
        shutil.copytree(SOURCE, self.source / "finelaunch", ignore=shutil.ignore_patterns("__pycache__"))
        for name in NOUNS:
            if not (self.source / "finelaunch" / "_data" / name).exists():
                (self.source.parent / name).parent.mkdir(parents=True, exist_ok=True)
                (self.source.parent / name).symlink_to(shipped(name))
        trainer = self.source / "finelaunch" / "training" / "trainer.py"
        trainer.write_text(trainer.read_text(encoding="utf-8") + OBEY, encoding="utf-8")
        self.order()

    @property
    def environment(self) -> dict[str, str]:
        """What a command and its jobs need to use this copy."""
        return {"PYTHONPATH": str(self.source), "FINELAUNCH_TEST_ORDERS": str(self.orders)}

    def order(self, pace_seconds: float = 0.0, ends: str = "", rank: int = 0, step: int = -1) -> None:
        """Have steps take ``pace_seconds`` longer, and one rank end at a step by ``raise``, ``kill`` or ``memory``."""
        new = self.orders.with_suffix(".new")
        new.write_text(json.dumps({"pace_seconds": pace_seconds, "ends": ends, "rank": rank, "step": step}))
        os.replace(new, self.orders)

    def edit(self, text: str) -> None:
        """Have the code say ``text`` when it begins to train."""
        trainer = self.source / "finelaunch" / "training" / "trainer.py"
        trainer.write_text(trainer.read_text(encoding="utf-8").replace(VERSION, text), encoding="utf-8")
