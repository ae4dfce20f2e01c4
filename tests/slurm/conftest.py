"""The cluster for the tests of this folder, what their runs are compared with, and what is left after a test."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.runs import weights_hash
from slurm.copied_package import CopiedPackage

from finelaunch.run.directory import RunDirectory
from slurm import cluster

LOCK = Path("/var/lock/localslurm-tests")


@pytest.fixture(autouse=True, scope="session")
def slurm() -> Iterator[None]:
    """Have the cluster to ourselves; leave it as it was found, stopped or with its settings."""
    if os.geteuid():
        pytest.skip("a Slurm cluster of its own needs root")
    with LOCK.open("w") as file:
        deadline = time.monotonic() + 1200
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                assert time.monotonic() < deadline, "other tests use the cluster"
                time.sleep(1)
        before = cluster.running_settings()
        has_default = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(Path(os.environ.get("LSL_DIR", "/var/lib/localslurm")) / "slurm.conf")
        yield
        if has_default is None:
            del os.environ["SLURM_CONF"]
        if before is None:
            cluster.stop()
        elif cluster.running_settings() != before:
            cluster.start(**before)


@pytest.fixture(autouse=True)
def settings(slurm: None, request: pytest.FixtureRequest) -> None:
    """Have the cluster run with what ``with_settings`` says; skip with a sentence where the machine lacks something."""
    try:
        cluster.start(**getattr(request.function, "settings", {}))
    except cluster.CannotRunHere as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give the SHA-256 of the weights of the same run on this machine, 4 processes, by the profile's name."""
    known: dict[str, str] = {}

    def weights(profile: str) -> str:
        if profile not in known:
            run = tmp_path_factory.mktemp(profile) / "run"
            words = ["--on", profile, "launch.num_processes_per_node=4", "--run-dir", run]
            done = cluster.finelaunch("launch", "imdb/smoke", *cluster.WORDS, *words)
            assert done.returncode == 0, done.stderr
            known[profile] = weights_hash(RunDirectory(run))
        return known[profile]

    return weights


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """Give a folder outside /tmp that everybody may enter, for nodes with a /tmp of their own and for other users."""
    path = Path(tempfile.mkdtemp(prefix="finelaunch-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def copied(tmp_path: Path) -> CopiedPackage:
    """Give a copy of the package whose steps a test can pace."""
    return CopiedPackage(tmp_path)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Add logs, events and Slurm's own word to the report of a test that fails, then end its jobs."""
    outcome = yield
    arguments = getattr(item, "funcargs", {})
    folders = [arguments[name] for name in ("tmp_path", "shared_path") if name in arguments]
    if call.when != "call":
        return
    report = outcome.get_result()
    for folder in folders:
        if report.failed:
            report.sections.append(("runs", "\n".join(cluster.told(folder))))
        cluster.cancel_jobs(folder)
