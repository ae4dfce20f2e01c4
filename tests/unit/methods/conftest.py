"""What several tests of methods take."""

from collections.abc import Callable
from pathlib import Path

import pytest
from unit.methods.bases import write_base


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Bases by architecture, each written when it is asked for."""
    made: dict[str, Path] = {}

    def base(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = write_base(tmp_path_factory.mktemp(model_type), model_type)
        return made[model_type]

    return base
