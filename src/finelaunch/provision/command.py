"""The commands that fetch what a recipe needs, for messages."""

import json
import shlex

from finelaunch.launch.cluster import Cluster
from finelaunch.section.document import Document, dotted, places
from finelaunch.section.lookup import COMMAND_LINE

SECTIONS = ("task", "model", "data", "evaluation")
"""The sections of a recipe that say what is fetched and tokenised."""


def prefetch_command(document: Document, cluster: str | None = None) -> str:
    """Return the command that fetches all that a recipe names.

    Args:
        document: The document behind the recipe, which knows its file and what the command line gave.
        cluster: The name of the cluster whose folders are meant.
    """
    words = ["finelaunch", "prefetch", document.name, *given_words(document)]
    return shlex.join([*words, *(["--cluster", cluster] if cluster else [])])


def tokenise_command(document: Document, cluster: Cluster | None, name: str | None, home: str | None) -> str:
    """Return the command that tokenises what is fetched, as a job on one CPU node.

    Args:
        document: The document behind the recipe.
        cluster: The site's facts, where one is named.
        name: What it is called.
        home: HF_HOME, where the login node has set it.
    """
    words = ["srun", "--ntasks=1", "--cpus-per-task=2", "--time=01:00:00"]
    if cluster is not None:
        given = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
        words += [f"--{option}={value}" for option, value in given.items() if value]
    words += ["env", "HF_HUB_OFFLINE=1", *([f"HF_HOME={home}"] if home else [])]
    words += ["finelaunch", "prefetch", document.name, *given_words(document)]
    return shlex.join([*words, *(["--cluster", name] if name else [])])


def given_words(document: Document) -> list[str]:
    """Return the ``key=value`` words that the command line gave to what is fetched and tokenised."""
    words = []
    for path, value in places(document.values):
        is_inside_list = any(isinstance(part, int) for part in path)
        if document.origins.get(path) != COMMAND_LINE or path[0] not in SECTIONS or is_inside_list:
            continue
        if not isinstance(value, dict):
            words.append(f"{dotted(path)}={value if isinstance(value, str) else json.dumps(value)}")
    return words
