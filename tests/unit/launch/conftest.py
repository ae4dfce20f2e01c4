"""The machine on which plans are made in tests, and the place where ranks are started."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from unit.launch.scene import Scene

from finelaunch.launch import profile as profile_module


@pytest.fixture(scope="module")
def bare_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine on which nothing is prepared and nothing was fetched, and whose CPU has bf16; in an empty folder."""
    empty = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINELAUNCH_CACHE", str(tmp_path_factory.mktemp("nothing_prepared")))
        hub = tmp_path_factory.mktemp("hub")
        patch.setenv("HF_HOME", str(hub))
        patch.setenv("HF_HUB_CACHE", str(hub))
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))  # the variables are read once, at import
        patch.setattr(profile_module, "cpu_has_bf16", lambda: True)
        patch.delenv("FINELAUNCH_CLUSTER", raising=False)
        patch.chdir(empty)
        yield empty
    assert not list(empty.iterdir()), "a plan writes nothing"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A folder whose processes are ended with the test."""
    scene = Scene(tmp_path)
    yield scene
    for process in scene.survivors():
        process.kill()
