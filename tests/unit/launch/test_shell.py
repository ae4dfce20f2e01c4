"""What a cluster profile may not bring into a batch script, each with its reason."""

from pathlib import Path
from typing import Any

import pytest

from finelaunch.errors import BadInput
from finelaunch.launch import shell
from finelaunch.launch.cluster import Cluster, load_cluster
from finelaunch.section.base import build
from finelaunch.section.document import Document
from finelaunch.section.lookup import shipped


def cluster_of(**values: Any) -> Cluster:
    return build(Cluster, Document(values))


def problems_of(**values: Any) -> list[str]:
    """Return what is said of a cluster profile."""
    with pytest.raises(BadInput) as caught:
        cluster_of(**values)
    return [str(problem) for problem in caught.value.problems]


HIDDEN = [*map(chr, range(32)), "\x7f", "\x85", "\u2028", "\u2029", "\u202e", "\u00a0", "\ud800", "\ufeff"]
TEXT_KEYS = [
    key for key, field in Cluster.model_fields.items() if field.annotation in (str | None, str) and key != "time_limit"
]


@pytest.mark.parametrize("key", [*TEXT_KEYS, "container", "srun_args", "sbatch_args", "setup", "env"])
@pytest.mark.parametrize("letter", HIDDEN, ids=[f"U+{ord(letter):04X}" for letter in HIDDEN])
def test_a_character_that_cannot_be_seen_is_refused_everywhere(key: str, letter: str) -> None:
    """A line break in a value of sbatch runs as shell."""
    text = f"/a{letter}touch /tmp/x"
    values = {"container": [text], "srun_args": [f"--mpi={text}"], "sbatch_args": [f"--comment={text}"]}
    values |= {"setup": [f"module load{text}b"], "env": {"A": text}}
    said = problems_of(**{key: values.get(key, text)})
    assert any(f"U+{ord(letter):04X}" in one for one in said)


def test_the_keys_of_text_are_all_of_them() -> None:
    assert len(TEXT_KEYS) == 14
    assert problems_of(time_limit="01:00:00\n")


@pytest.mark.parametrize("name", ["a\nb", "A=B", "", "1A", "A B", "A;touch x", "Ä"])
def test_a_name_that_no_variable_has_is_refused(name: str) -> None:
    assert any("is no name of a variable" in one for one in problems_of(env={name: "x"}))


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "aws_secret", "DB_PASSWD", "X_CREDENTIALS"]
)
def test_a_secret_is_refused_and_not_shown(name: str) -> None:
    for values in ({"env": {name: "s3cr3t"}}, {"setup": [f"export {name}=s3cr3t"]}, {"setup": [f"{name}='s3cr3t' x"]}):
        (said,) = problems_of(**values)
        assert "looks like a secret, and scripts and Slurm's records can be read by others" in said
        assert "s3cr3t" not in said
    cluster_of(setup=[f'export {name}="$(cat ~/.mine)"', f"export {name}=$OTHER", f"unset {name}"])


@pytest.mark.parametrize("text", ["hf_abcdefghijklmnopqrstuvwxyz", "http://me:s3cr3t@proxy:8080"])
def test_a_value_that_is_a_secret_is_refused(text: str) -> None:
    for values in ({"env": {"X": text}}, {"account": text}, {"container": [text]}, {"setup": [f"x {text}"]}):
        assert "looks like a secret" in problems_of(**values)[0]


@pytest.mark.parametrize("name", ["RANK", "SLURM_NTASKS", "SBATCH_EXPORT", "ACCELERATE_USE_CPU", "OMP_NUM_THREADS"])
def test_what_the_job_says_itself_is_not_taken_from_a_profile(name: str) -> None:
    assert problems_of(env={name: "1"})


@pytest.mark.parametrize("name", ["UID", "IFS", "BASH_ENV", "SHELLOPTS", "_"])
def test_variables_of_bash_are_not_set(name: str) -> None:
    assert "means something to bash itself" in problems_of(env={name: "1"})[0]


@pytest.mark.parametrize("key", ["sbatch_args", "srun_args"])
def test_options_that_contradict_the_script_are_refused_however_they_are_written(key: str) -> None:
    for name in shell.REFUSED[key]:
        for word in (f"--{name}", f"--{name}=1", f"--{name[:-1]}"):
            said = " ".join(problems_of(**{key: [word]}))
            assert "contradicts what is rendered" in said or "is no long option" in said
    for word in ("-N3", "-o", "x", "--", "-", "--Nodes=1", "--x y", "#"):
        assert any("is no long option" in one for one in problems_of(**{key: [word]}))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("exit", "exit would end the job before its start"),
        ("  exec bash", "exec would end the job"),
        ("cat <<EOF", "a here-document would swallow the start"),
        ("module load a \\", "goes on in the next line"),
        ("true &&", "goes on in the next line"),
        ("a |", "goes on in the next line"),
        ("", "is empty"),
    ],
)
def test_a_line_of_setup_that_keeps_the_start_from_being_reached_is_refused(line: str, said: str) -> None:
    assert said in problems_of(setup=[line])[0]


@pytest.mark.parametrize("scratch", ["scratch", "~/x", "/s/$HOME", "/s/$USERS", "/s/$(id)", "/s/${USER", "$", ""])
def test_a_scratch_that_means_nothing_on_a_node_is_refused(scratch: str) -> None:
    assert problems_of(scratch=scratch)


def test_shipped_clusters_load(tmp_path: Path) -> None:
    for path in shipped("slurm/clusters").glob("*.yaml"):
        copy = tmp_path / path.name
        copy.write_bytes(path.read_bytes())
        assert load_cluster(str(copy))[0] == load_cluster(path.stem)[0]
