"""What holds for every test: no hub, and a cache of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("finelaunch", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("finelaunch")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is prepared in tests out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("FINELAUNCH_CACHE")
    os.environ["FINELAUNCH_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["FINELAUNCH_CACHE"]
    else:
        os.environ["FINELAUNCH_CACHE"] = before
