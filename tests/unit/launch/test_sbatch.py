"""The batch script: that values stay values, that time limits leave room, and the twin that is submitted by hand."""

import math
import re
import shlex
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finelaunch.errors import BadInput
from finelaunch.launch import shell
from finelaunch.launch.cluster import Cluster, load_cluster
from finelaunch.launch.profile import Profile, load_profile
from finelaunch.launch.sbatch import (
    JOB,
    NUM_SAVES,
    check_time_limit,
    render,
    signal_delay,
    submission_environment,
)
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.section.lookup import shipped

GPUS: dict[str, Any] = {"target": "slurm", "device": "cuda", "num_nodes": 2, "num_processes_per_node": 4}


def cluster_of(**values: Any) -> Cluster:
    return build(Cluster, Document(values))


def script_of(cluster: Cluster, run: str = "/runs/a", **named: Any) -> str:
    profile = Profile(**{**GPUS, "accelerate_config": "ddp"})
    given = {"python": "/usr/bin/python3", "folder": "/home/me", "cache": "/home/me/.cache", **named}
    return render(cluster, Document({}), profile, "a", run=run, **given)


def as_sbatch_parses(line: str) -> list[str]:
    """Return the words of a line for sbatch.

    Source: Slurm 22.05, src/sbatch/opt.c, _get_argument.
    """
    words, word, quote, escaped = [], None, "", False
    for letter in line.removeprefix("#SBATCH"):
        if escaped:
            word, escaped = (word or "") + letter, False
        elif letter == "\\":
            escaped = True
        elif quote:
            word, quote = (word or "", "") if letter == quote else ((word or "") + letter, quote)
        elif letter in "\"'":
            word, quote = word or "", letter
        elif letter.isspace():
            words, word = (words if word is None else [*words, word]), None
        elif letter == "#":
            break
        else:
            word = (word or "") + letter
    assert not quote, line
    return words if word is None else [*words, word]


def directives_of(script: str) -> dict[str, str]:
    """Return the options that sbatch reads from a script."""
    found: dict[str, str] = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            (word,) = as_sbatch_parses(line)
            name, _, value = word.removeprefix("--").partition("=")
            assert name not in found
            found[name] = value
    return found


letters = st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" '\"\\$`!#;&|<>(){}[]*?~%-=:@,")
texts = st.text(letters, min_size=1, max_size=12).filter(
    lambda text: text.isprintable() and text.strip() and "://" not in text and "hf_" not in text
)
variable_names = st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not list(shell.env_faults({name: "x"}))
)
profiles = st.fixed_dictionaries(
    {
        **dict.fromkeys(("partition", "account", "qos", "constraint", "exclude", "gpu_type", "memory"), texts),
        **dict.fromkeys(("mail_user", "mail_type", "hf_home", "python"), texts),
        "env": st.dictionaries(variable_names, texts | st.just(""), max_size=3),
        "container": st.lists(texts, max_size=2),
        "sbatch_args": st.lists(texts.map(lambda text: f"--comment={text}"), max_size=1),
        "srun_args": st.lists(texts.map(lambda text: f"--propagate={text}"), max_size=2),
        "scratch": texts.map(lambda text: "/scratch/" + text.replace("$", "") + "/$SLURM_JOB_ID"),
    }
)
paths = texts.map(lambda text: "/" + text.replace("%", "").replace("\\", ""))
BEFORE = """
srun() { printf '%s\\0' "$@" >&3; printf '\\n\\0' >&3; }
PATH=/nonexistent SLURM_JOB_ID=7 SLURM_JOB_USER=me
"""


@given(values=profiles, run=paths, folder=paths, cache=paths, name=texts)
@settings(max_examples=150)
def test_every_value_reaches_its_place_and_starts_nothing(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], run: str, folder: str, cache: str, name: str
) -> None:
    """bash itself runs the script, with nothing on its PATH and srun a function that writes down its words."""
    cluster, where = cluster_of(**values), tmp_path_factory.mktemp("empty")
    profile = Profile(**{**GPUS, "accelerate_config": "ddp"})
    script = render(cluster, Document({}), profile, name, run=run, python="python", folder=folder, cache=cache)
    assert subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=True).stderr == b""
    scratch = values["scratch"].replace("$SLURM_JOB_ID", "7")
    wanted = {
        **values["env"],
        "HF_HOME": values["hf_home"],
        "HF_HUB_OFFLINE": "1",
        "FINELAUNCH_CACHE": cache,
        "OMP_NUM_THREADS": "1",
        "SRUN_CPUS_PER_TASK": "1",
        "SUBMITIT_EXECUTOR": "slurm",
        "FINELAUNCH_SCRATCH": scratch,
        "TMPDIR": f"{scratch}/tmp-7",
    }
    after = "".join(f'printf "%s\\0" "${name}" >&3\n' for name in wanted)
    assert script.endswith('exit "$code"\n')
    script = script.removesuffix('exit "$code"\n')
    done = subprocess.run(
        ["bash", "-c", "exec 3>&1 1>&2; . /dev/stdin"],
        input=f"{BEFORE}{script}{after}".encode(),
        capture_output=True,
        cwd=where,
        check=True,
    )
    assert done.stderr == b""
    assert not list(where.iterdir())
    words = done.stdout.decode().split("\0")[:-1]
    assert words[-len(wanted) :] == list(wanted.values())
    made, started, removed = (number for number, word in enumerate(words) if word == "\n")
    on_each_node = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--export=ALL"]
    assert words[:made] == [*on_each_node, "mkdir", "-p", "--", f"{scratch}/tmp-7"]
    assert words[started + 1 : removed] == [*on_each_node, "rm", "-rf", "--", f"{scratch}/tmp-7"]
    assert "--export=ALL" in words[made + 1 : started]
    task = [*values["container"], values["python"], "-u", "-m", "finelaunch.slurm.task", f"{run}/slurm"]
    assert words[made + 1 : started][-len(values["srun_args"] + task) :] == values["srun_args"] + task
    options = directives_of(script)
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        assert options[key] == values[key]
    assert (options["mem"], options["mail-user"], options["mail-type"]) == tuple(
        values[key] for key in ("memory", "mail_user", "mail_type")
    )
    assert options["gres"] == f"gpu:{values['gpu_type']}:4"
    assert (options["output"], options["chdir"]) == (f"{run}/slurm/%j_0_log.out", folder)
    assert re.fullmatch(r"finelaunch-[A-Za-z0-9._-]+", options["job-name"])
    assert [f"--comment={options['comment']}"] == values["sbatch_args"] if values["sbatch_args"] else True


def test_what_is_rendered_is_refused_as_a_further_option() -> None:
    cluster = cluster_of(mail_user="a", mail_type="END", exclusive=True, memory="1G", scratch="/s")
    script = script_of(cluster, after=JOB)
    assert set(directives_of(script)) <= set(shell.REFUSED["sbatch_args"])
    own = {word.removeprefix("--").partition("=")[0] for word in start_of(script) if word[:2] == "--"}
    assert "export" in own
    assert own - {"cpu-bind"} <= set(shell.REFUSED["srun_args"])


def test_further_options_are_taken() -> None:
    cluster = cluster_of(
        sbatch_args=["--reservation=x y", "--nodelist=n1", "--mem-per-cpu=2G"],
        srun_args=["--mpi=none", "--cpu-bind=cores", "--gpu-bind=none", "--mem=0"],
    )
    script = script_of(cluster)
    assert directives_of(script)["reservation"] == "x y"
    assert "--cpu-bind=none" not in script
    assert "--cpu-bind=none" in script_of(cluster_of())


def test_setup_is_shell_and_comes_before_everything_else() -> None:
    lines = ["module purge", "source ~/venv/bin/activate || exit 1", 'grep -q x <<< "$PATH" && ulimit -c 0']
    script = script_of(cluster_of(setup=lines, env={"A": "1"}))
    assert "\n".join(["umask 077", *lines, "", "export A=1"]) in script


def test_a_scratch_whose_variable_is_unset_ends_the_job_with_a_sentence() -> None:
    script = "unset TMPDIR; srun() { :; }\n" + script_of(cluster_of(scratch="$TMPDIR/a"))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.strip().endswith("TMPDIR: is not set on this node")


@pytest.mark.parametrize("what", ["run", "python", "folder", "cache"])
def test_a_path_with_a_line_break_is_refused(what: str) -> None:
    with pytest.raises(BadInput, match="holds characters that cannot be seen"):
        script_of(cluster_of(), **{what: "/a\ntouch x"})


@pytest.mark.parametrize("run", ["/a%j", "/a\\b"])
def test_a_run_directory_that_slurm_takes_for_a_pattern_is_refused(run: str) -> None:
    with pytest.raises(BadInput, match="mean something to Slurm"):
        script_of(cluster_of(), run=run)


@pytest.mark.parametrize(
    ("style", "kind", "line"),
    [
        ("gres", None, "gres=gpu:4"),
        ("gres", "a100", "gres=gpu:a100:4"),
        ("gpus-per-node", None, "gpus-per-node=4"),
        ("gpus-per-node", "a100", "gpus-per-node=a100:4"),
        ("gpus-per-task", None, "gpus-per-task=1"),
        ("gpus-per-task", "a100", "gpus-per-task=a100:1"),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants_it(style: str, kind: str | None, line: str) -> None:
    cluster = cluster_of(gpus=style, gpu_type=kind)
    lines = [one for one in script_of(cluster).splitlines() if "gres" in one or "gpu" in one]
    assert lines == [f"#SBATCH --{line}"]
    on_cpus = Profile(**{**GPUS, "device": "cpu", "accelerate_config": "ddp"})
    assert "gpu" not in render(cluster, Document({}), on_cpus, "a", run="/r", python="p")


def test_a_job_that_takes_over_waits_for_the_one_before() -> None:
    cluster = cluster_of(requeue="successors", successors=2)
    first, next_one = script_of(cluster), script_of(cluster, after="12")
    assert "Then 2 more, to take over, each with one line more: --dependency=afterany:<job>" in first
    assert directives_of(next_one) == {**directives_of(first), "dependency": "afterany:12"}
    assert "no-requeue" in directives_of(first)
    assert "requeue" in directives_of(script_of(cluster_of()))


@given(save=st.floats(0, 1e5))
def test_the_delay_has_room_for_a_save(save: float) -> None:
    delay = signal_delay(cluster_of(), save)
    assert 60 <= delay <= 65_535
    assert delay >= min(65_535, 3 * save)
    assert signal_delay(cluster_of(signal_delay_seconds=20), save) == 20
    assert signal_delay(cluster_of()) == 120


@given(
    limit=st.integers(1, 90),
    delay=st.none() | st.integers(5, 900),
    startup=st.integers(1, 900),
    save=st.none() | st.floats(0, 500),
)
def test_a_time_limit_leaves_room_for_progress_or_is_refused_with_one_that_does(
    limit: int, delay: int | None, startup: int, save: float | None
) -> None:
    def checked(minutes: int) -> str:
        text = f"{minutes // 60}:{minutes % 60:02}:00"
        cluster = cluster_of(time_limit=text, signal_delay_seconds=delay, startup_seconds=startup)
        try:
            check_time_limit(cluster, Document({}), save)
        except BadInput as error:
            return str(error)
        return ""

    if delay is not None and save is not None and delay < save:
        assert f"cluster.signal_delay_seconds: {delay} s between signal and time limit, and a save" in checked(limit)
        return
    seconds = signal_delay(cluster_of(signal_delay_seconds=delay), save) + 60 + startup
    needed = seconds + math.ceil(NUM_SAVES * (save or 0))
    said = checked(limit)
    assert bool(said) == (60 * limit < needed)
    if said:
        assert f"= {needed} s; " in said
        hours, minutes = re.findall(r"; (\d+):(\d\d):00 or more", said)[0]
        least = 60 * int(hours) + int(minutes)
        assert checked(least) == ""
        assert checked(least - 1)


def test_begun_minutes_count_whole_as_slurm_counts_them() -> None:
    cluster = cluster_of(time_limit="04:01", signal_delay_seconds=60, startup_seconds=180)
    check_time_limit(cluster, Document({}))


def test_a_job_is_submitted_without_what_speaks_of_another_and_without_secrets() -> None:
    kept = {
        "PATH": "/bin",
        "HOME": "/h",
        "SLURM_CONF": "/etc/c",
        "NCCL_DEBUG": "INFO",
        "HF_HOME": "/x",
        "PYTHONPATH": "",
    }
    kept |= {"TOKENIZERS_PARALLELISM": "false", "LC_ALL": "C", "PMI": "kept", "RANKING": "1"}
    dropped = ["SLURM_JOB_ID", "SLURM_CPU_BIND", "SLURM_MEM_PER_NODE", "SBATCH_PARTITION", "SRUN_DEBUG", "RANK"]
    dropped += ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"]
    dropped += ["FSDP_VERSION", "TORCHELASTIC_RUN_ID", "PMI_RANK", "PMIX_ID", "OMPI_COMM_WORLD_RANK", "HF_TOKEN"]
    dropped += ["WANDB_API_KEY", "my_password", "CUDA_VISIBLE_DEVICES", "TMPDIR", "SUBMITIT_EXECUTOR"]
    found, left_out = submission_environment({**kept, **dict.fromkeys(dropped, "1")})
    assert found == kept
    assert left_out == sorted(dropped)
    assert submission_environment({"TMPDIR": "/big"}) == ({"TMPDIR": "/big"}, []), "of a login shell it is the user's"


def test_the_twin_by_hand_is_the_rendered_script_in_every_line_that_matters() -> None:
    cluster, document, _ = load_cluster("example")
    profile, _, _ = load_profile("slurm_2x4")
    path = shipped("slurm") / "train.sbatch"
    twin = path.read_text(encoding="utf-8")
    rendered = render(cluster, document, profile, "x", run="$RUN", python="$PYTHON")
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    ours, own = directives_of(rendered), directives_of(twin)
    named_otherwise = {"job-name", "output", "error", "chdir"}  # sbatch expands no variables
    assert {name: ours[name] for name in ours if name not in named_otherwise} == {
        name: own[name] for name in own if name not in named_otherwise
    }
    assert own.keys() - ours.keys() == set()
    assert 'exec >>"$RUN/slurm/${SLURM_JOB_ID}_0_log.out" 2>>"$RUN/slurm/${SLURM_JOB_ID}_0_log.err"' in twin
    assert start_of(twin)[:10] == start_of(rendered)[:10]
    end = ["||", "code=$?"]
    task = shlex.split("$PYTHON -u -m finelaunch train $RECIPE --on $PROFILE --run-dir $RUN $@")
    assert start_of(twin)[10:] == [*task, *end]
    assert start_of(rendered)[10:] == [*shlex.split("$PYTHON -u -m finelaunch.slurm.task $RUN/slurm"), *end]
    steps = [line.replace('"$SLURM_NNODES"', "2") for line in twin.splitlines() if line.startswith("srun --nodes")]
    assert steps == [line for line in rendered.splitlines() if line.startswith("srun --nodes")]
    assert len(steps) == 2
    by_hand = {"FINELAUNCH_CACHE", "SUBMITIT_EXECUTOR"}  # the user's own, and nothing of submitit
    assert exports_of(twin, cluster) == {k: v for k, v in exports_of(rendered, cluster).items() if k not in by_hand}
    for line in ("umask 077", *cluster.setup):
        assert re.search(rf"^{re.escape(line)}( |$)", twin, re.MULTILINE)


def start_of(script: str) -> list[str]:
    """Return the words of the command that starts the ranks."""
    lines = script.replace("\\\n", " ").splitlines()
    return shlex.split(next(line for line in lines if line.startswith("srun --unbuffered")))


def exports_of(script: str, cluster: Cluster) -> dict[str, str]:
    """Return what a script exports, with the number of cores that Slurm says filled in."""
    found = dict(re.findall(r"^export (\w+)=(.*)$", script, re.MULTILINE))
    return {name: value.replace("$SLURM_CPUS_PER_TASK", str(cluster.cpus_per_task)) for name, value in found.items()}


def test_a_folder_for_temporary_files_is_made_before_it_is_said() -> None:
    lines = script_of(cluster_of(scratch="/s/$SLURM_JOB_ID")).splitlines()
    made = next(number for number, line in enumerate(lines) if "mkdir" in line)
    assert lines[made + 1] == 'export TMPDIR="$FINELAUNCH_SCRATCH/tmp-$SLURM_JOB_ID"'
    assert "TMPDIR" not in "\n".join(lines[:made])
    assert "SCRATCH" not in script_of(cluster_of())
