"""What may stand in a batch script, and how it is quoted there.

A cluster profile comes from a colleague, a wiki, a web page. Its ``setup`` is shell by intent; every other value is
text: it reaches a command or a variable as it stands, and starts nothing.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from finelaunch.launch.environment import SECRET, is_of_a_launcher
from finelaunch.section.base import SettingError

SCRATCH_VARIABLES = ("SLURM_JOB_ID", "USER", "TMPDIR")
_ANY_OF = "|".join(SCRATCH_VARIABLES)
_SCRATCH_VARIABLE = re.compile(rf"\$(?:({_ANY_OF})(?![A-Za-z0-9_])|\{{({_ANY_OF})\}})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=.*)?")
_SPECIAL = re.compile(r"[\s\"'\\#]")

_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}|://[^/\s:@]*:[^/\s@]+@")
_ASSIGNMENT = re.compile(r"\b([A-Za-z_][A-Za-z0-9_]*)=(?![\"']?[$`]|\s|$|\"\"|'')")
_READABLE = "scripts and Slurm's records can be read by others"
_LOGIN = "leave it out: hf auth login writes the token to a file of yours on the shared home, which jobs read"

_OURS = {
    "OMP_NUM_THREADS": "use cpus_per_task: another number of threads changes the last bits of a sum",
    "HF_HOME": "use hf_home",
    "HF_HUB_OFFLINE": "use offline",
    "FINELAUNCH_CACHE": "set it in the shell that submits",
    "FINELAUNCH_SCRATCH": "use scratch",
    "TMPDIR": "use scratch",
    "DS_ACCELERATOR": "it follows from launch.device",
}
_BASH = ("_", "ENV", "EUID", "GROUPS", "HISTCMD", "IFS", "LINENO", "OPTIND", "PPID", "RANDOM", "SECONDS", "SRANDOM")
_BASH += ("UID", "SHELLOPTS", "POSIXLY_CORRECT", "FUNCNAME", "DIRSTACK", "COMP_WORDBREAKS", "EPOCHSECONDS")
_BASH += ("EPOCHREALTIME",)

_KEYS = {
    "partition": "use partition",
    "account": "use account",
    "qos": "use qos",
    "constraint": "use constraint",
    "exclude": "use exclude",
    "exclusive": "use exclusive",
    "time": "use time_limit",
    "time-min": "it would shorten the time limit: use time_limit",
    "gres": "use gpus and gpu_type",
    "gpus": "use gpus and gpu_type",
    "gpus-per-node": "use gpus: gpus-per-node",
    "gpus-per-task": "use gpus: gpus-per-task",
    "gpus-per-socket": "use gpus and gpu_type",
    "cpus-per-task": "use cpus_per_task",
    "cpus-per-gpu": "use cpus_per_task",
    "mail-user": "use mail_user",
    "mail-type": "use mail_type",
    "signal": "use signal_delay_seconds",
    "requeue": "use requeue",
    "no-requeue": "use requeue: successors",
    "nodes": "use launch.num_nodes",
    "ntasks": "it follows from the launch profile",
    "ntasks-per-node": "use launch.num_processes_per_node",
    "ntasks-per-core": "it follows from the launch profile",
    "ntasks-per-gpu": "it follows from the launch profile",
    "ntasks-per-socket": "it follows from the launch profile",
    "distribution": "ranks are counted node by node",
}
_RUN = {
    "job-name": "it is named after the run: --name",
    "output": "logs lie in the run directory",
    "error": "logs lie in the run directory",
    "input": "nothing is read",
    "open-mode": "logs are appended to, over restarts",
    "chdir": "jobs start in the folder of submission",
    "export": "jobs have the environment of the submission, without secrets: use env",
    "export-file": "use env",
    "get-user-env": "use env or setup",
    "dependency": "it orders the jobs that take over",
    "array": "a run is one job",
    "het-group": "a run is one job",
    "wrap": "the script is there",
    "parsable": "the answer is read by submitit",
    "quiet": "the answer is read by submitit",
    "test-only": "nothing would run: use finelaunch plan",
    "hold": "the run would not start: use scontrol hold",
}
_SRUN = {
    "kill-on-bad-exit": "a dead rank must end the others, which would wait for it until a time-out",
    "unbuffered": "it is always set",
    "label": "logs are a file for each rank",
    "multi-prog": "every rank runs the same",
    "pty": "there is no terminal",
    "jobid": "it is the job itself",
    "immediate": "the job is there already",
    "relative": "every node takes part",
    "exact": "it is the only step",
}
_SBATCH = {"mem": "use memory", "wait": "use launch --wait"}
REFUSED = {"sbatch_args": {**_KEYS, **_RUN, **_SBATCH}, "srun_args": {**_KEYS, **_RUN, **_SRUN}}
"""Options that would contradict the rest of the script, by the key that they stand under, and what to do instead."""


def text_faults(place: str, text: str) -> Iterator[SettingError]:
    """Yield why ``text`` may not stand in a script: a line break in a value would begin a command."""
    if hidden := next((letter for letter in text if not letter.isprintable()), None):
        what = f"holds the character U+{ord(hidden):04X}, which cannot be seen and may end a line"
        yield SettingError(place, what, "printable characters and spaces", "leave it out")
    elif not text.strip():
        yield SettingError(place, "is empty", "", "leave it out")
    elif _SECRET_VALUE.search(text):
        yield SettingError(place, f"looks like a secret, and {_READABLE}", "", _LOGIN)


def env_faults(env: Mapping[str, str]) -> Iterator[SettingError]:
    """Yield which variables may not be set for a job."""
    for name, value in env.items():
        place = f"env.{name}" if _NAME.fullmatch(name) else "env"
        if place == "env":
            yield SettingError(place, f"{name!r:.60} is no name of a variable", "letters, digits and _, no digit first")
        elif SECRET.search(name):
            yield SettingError(place, f"looks like a secret, and {_READABLE}", "", _LOGIN)
        elif name in _OURS:
            yield SettingError(place, "is set by the job itself", "", _OURS[name])
        elif is_of_a_launcher(name):
            yield SettingError(place, "is for Slurm and its tasks to say", "", "leave it out")
        elif name in _BASH or name.startswith("BASH"):
            yield SettingError(place, "means something to bash itself", "", "leave it out")
        if value.strip():
            yield from text_faults(place, value)


def setup_faults(lines: Sequence[str]) -> Iterator[SettingError]:
    """Yield which lines of shell may not stand before the start.

    They are commands of the site. What would keep the start from being reached without a word is refused.
    """
    for place, line in ((f"setup.{number}", line.strip()) for number, line in enumerate(lines)):
        yield from text_faults(place, line)
        if re.match(r"(exit|exec|return|logout)\b", line):
            what = f"{line.split()[0]} would end the job before its start, as if all were well"
            yield SettingError(place, what, "", "leave it out; with a condition: COMMAND || exit 1")
        if re.search(r"(\\|&&|\|\|?)$", line):
            yield SettingError(place, "goes on in the next line", "a command in one line", "write it in one")
        if re.search(r"(?<!<)<<(?!<)", line):
            yield SettingError(place, "a here-document would swallow the start", "", "use a file, or <<<")
        for name in _ASSIGNMENT.findall(line):
            if SECRET.search(name):
                yield SettingError(place, f"{name} looks like a secret, and {_READABLE}", "", _LOGIN)


def option_faults(key: str, words: Sequence[str]) -> Iterator[SettingError]:
    """Yield which further options of sbatch or srun may not be given: those that contradict the rest of the script.

    Slurm takes any beginning of a name that fits one option, so a beginning of a refused one is refused too.
    """
    for number, word in enumerate(words):
        place = f"{key}.{number}"
        yield from text_faults(place, word)
        found = _OPTION.fullmatch(word)
        if found is None:
            yield SettingError(place, f"{word!r:.60} is no long option", "--name or --name=value, each one word")
        elif full := next((name for name in REFUSED[key] if name.startswith(found[1])), None):
            what = f"--{found[1]} contradicts what is rendered"
            yield SettingError(place, what, "", REFUSED[key][full])


def scratch_faults(scratch: str) -> Iterator[SettingError]:
    """Yield why a folder of a node cannot be named so."""
    yield from text_faults("scratch", scratch)
    allowed = f"a path from / on, or $TMPDIR; with {', '.join('$' + name for name in SCRATCH_VARIABLES)}"
    if "$" in _SCRATCH_VARIABLE.sub("", scratch):
        yield SettingError("scratch", f"{scratch!r:.80} holds another $", allowed)
    elif not scratch.startswith(("/", "$TMPDIR", "${TMPDIR}")):
        yield SettingError("scratch", f"{scratch!r:.80} is relative", allowed)


def scratch_word(scratch: str) -> str:
    """Return a folder as a word of bash; its variables are expanded on the node, and one that is unset ends the job."""
    word, end = "", 0
    for found in _SCRATCH_VARIABLE.finditer(scratch):
        literal = scratch[end : found.start()]
        name = (found[1] or found[2]).replace("USER", "SLURM_JOB_USER", 1)  # which is set where USER is not
        word += (shlex.quote(literal) if literal else "") + f'"${{{name}:?is not set on this node}}"'
        end = found.end()
    return word + (shlex.quote(scratch[end:]) if scratch[end:] else "")


def names_job(scratch: str) -> bool:
    """Return whether a folder of a node is one job's alone, by its number in the name."""
    return any("SLURM_JOB_ID" in found.groups() for found in _SCRATCH_VARIABLE.finditer(scratch))


def directive(name: str, value: object = True) -> str:
    """Return a line for sbatch, quoted as sbatch parses it.

    That is not as bash does: a backslash counts within single quotes too, and none saves a space outside of quotes.
    Within double quotes a backslash lets the next character stand as it is, and nothing else has a meaning there
    (measured with sbatch 22.05).
    """
    if value is True:
        return f"#SBATCH --{name}"
    text = str(value)
    if _SPECIAL.search(text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"#SBATCH --{name}={text}"
