"""Variables that must not reach the processes of a run: those of other launchers, and those that hold secrets."""

import re
from collections.abc import Mapping

SECRET = re.compile(r"(TOKEN|KEY|PASSWORD|PASSWD|SECRET|CREDENTIALS?)S?$", re.IGNORECASE)
"""How the names of variables end whose values are nobody's business."""

_LAUNCHERS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SUBMITIT_")
_MPI = ("PMI_", "PMIX_", "PMI2_", "OMPI_", "MPI_LOCAL")
_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK")
_MEETING = ("ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_of_a_launcher(name: str) -> bool:
    """Return whether a variable says which rank a process is, or how it was started."""
    return name.startswith((*_LAUNCHERS, *_MPI)) or name in (*_RANK, *_MEETING)


def without_launchers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``environment`` without what another launcher has said of this process."""
    return {name: value for name, value in environment.items() if not is_of_a_launcher(name)}
