"""What nodes find, what it means, and the job that asks them."""

import json
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finelaunch.launch.cluster import Cluster
from finelaunch.launch.profile import load_profile
from finelaunch.provision import probe
from finelaunch.provision.checks_nodes import check_reports
from finelaunch.provision.nodes import Nodes, srun_command
from finelaunch.recipe.load import read_overrides

FOLDERS = {"the run's": Path("/work/runs"), "the hub's": Path("/work/hub")}
HERE = {"python": "3.12.1", "packages": {"torch": "2.13.0", "deepspeed": None}}
GPU = {"name": "NVIDIA A100", "uuid": "GPU-1", "driver": "570.1", "capability": "8.0", "memory": "80000 MiB"}


def profile(name="slurm_cpu_2x2", *words):
    return load_profile(name, read_overrides(words)["launch"])[0]


def report(node, **facts):
    return {
        "node": node,
        "folders": {what: {"token": "abc", "error": None} for what in FOLDERS},
        "reached": {"g1" if node == "g2" else "g2": None},
        "clock": 0.1,
        "addresses": {"g1": "10.0.0.1", "g2": "10.0.0.2"},
        "interfaces": ["eth0", "ib0"],
        "python": "3.12.1",
        "packages": {"torch": "2.13.0", "deepspeed": None},
        "is_importable": True,
        "scontrol": None,
        "scratch": {"path": "/scratch", "below": "/scratch", "free": 1 << 40, "writable": True},
        "gpus": None,
        "torch_cuda": "12.8",
        "driver_cuda": None,
        "internet": False,
        "memlock": -1,
        "nofile": 65536,
        "umask": "022",
        "has_infiniband": True,
        **facts,
    }


def checks(*reports, cluster=None, on=None, method=None, **answer):
    given = Nodes(tuple(reports), token="abc", asked=FOLDERS, **answer)
    return check_reports(given, cluster or Cluster(), on or profile(), HERE, method)


def bad(*reports, **given):
    return {(check.name, check.state): check for check in checks(*reports, **given) if check.state != "ok"}


def test_nodes_that_have_everything():
    found = checks(report("g1"), report("g2"))
    assert {check.state for check in found} == {"ok"}, found
    assert "a job ran on g1, g2" in found[0].text


def test_nodes_that_did_not_answer():
    waited = checks(has_waited=True, why="still waiting for 2 nodes after 120 s")
    assert [(check.state, check.text) for check in waited] == [("not checked", "still waiting for 2 nodes after 120 s")]
    assert checks(why="0 of 2 nodes answered: execve(): python: No such file or directory")[0].state == "failed"
    half = bad(report("g1"), why="1 of 2 nodes answered: g2: task 1: Killed")
    assert half["nodes", "failed"].text.startswith("1 of 2 nodes answered")


def unseen(node):
    folders = {"the run's": {"token": None, "error": None}, "the hub's": {"token": "abc", "error": None}}
    return report(node, folders=folders)


def test_a_folder_that_nodes_do_not_see():
    found = bad(report("g1"), unseen("g2"), unseen={"the run's": ["g2"]})
    assert set(found) == {("shared folder", "failed")}
    check = found["shared folder", "failed"]
    assert check.text == "the run's /work/runs is not seen from g2"
    assert "--run-dir" in check.remedy


def test_another_folder_of_the_same_name_is_not_shared():
    folders = {what: {"token": "other", "error": None} for what in FOLDERS}
    assert ("shared folder", "failed") in bad(report("g1"), report("g2", folders=folders))


def test_a_folder_that_nodes_may_only_read():
    folders = {what: {"token": "abc", "error": "Read-only file system"} for what in FOLDERS}
    found = bad(report("g1"), report("g2", folders=folders), unseen={"the run's": ["g2"], "the hub's": ["g2"]})
    assert "g2: Read-only file system" in found["shared folder", "failed"].text


def test_what_nodes_write_must_come_back():
    found = bad(report("g1"), report("g2"), unseen={"the hub's": ["g1"]})
    assert "what g1 wrote is not seen here" in found["shared folder", "failed"].text


@pytest.mark.parametrize(
    ("facts", "name", "state", "says"),
    [
        ({"python": "3.9.1"}, "python there", "failed", "3.9.1 on g2, and here it is 3.12.1"),
        ({"packages": {"torch": "2.4.0"}}, "packages there", "warning", "torch 2.13.0 here, and 2.4.0 on g2"),
        ({"packages": {}}, "packages there", "failed", "missing are all on g2"),
        ({"is_importable": False}, "packages there", "failed", "its files are not seen from g2"),
        ({"addresses": {"g1": None, "g2": "10.0.0.2"}}, "node names there", "failed", "g2 does not resolve g1"),
        (
            {"addresses": {"g1": "10.0.0.1", "g2": "127.0.1.1"}},
            "node names there",
            "failed",
            "g2 is 127.0.1.1 on g2",
        ),
        ({"reached": {"g1": "No route to host"}}, "network", "failed", "g2 to g1: No route to host"),
        ({"clock": 20.0}, "clocks", "warning", "nodes differ by 20 s"),
        ({"scontrol": "scontrol is not installed"}, "scontrol there", "failed", "cannot requeue itself"),
        (
            {"scratch": {"path": "/scratch/1", "below": "/", "free": 1 << 40, "writable": False}},
            "scratch",
            "failed",
            "/scratch/1 cannot be written on g2",
        ),
        (
            {"scratch": {"path": "/tmp", "below": "/tmp", "free": 1 << 20, "writable": True}},
            "scratch",
            "warning",
            "1.0 MiB or more are free",
        ),
        ({"nofile": 1024}, "ulimit", "warning", "open files of a process: 1024 on g2"),
        ({"memlock": 65536}, "ulimit", "warning", "locked memory: 65536 on g2"),
    ],
)
def test_what_one_node_lacks(facts, name, state, says):
    found = bad(report("g1"), report("g2", **facts))
    assert set(found) == {(name, state)}, found
    assert says in found[name, state].text


def test_another_build_or_patch_is_no_other_version():
    assert not bad(report("g1"), report("g2", python="3.12.9", packages={"torch": "2.13.0+cu128"}))


def test_ways_round_what_nodes_lack():
    loop = {"addresses": {"g1": "10.0.0.1", "g2": "127.0.1.1"}}
    remedy = bad(report("g1"), report("g2", **loop))["node names there", "failed"].remedy
    assert remedy == "set cluster.env.GLOO_SOCKET_IFNAME to one of eth0, ib0"
    assert not bad(report("g1"), report("g2", **loop), cluster=Cluster(env={"GLOO_SOCKET_IFNAME": "eth0"}))
    mute = report("g1", scontrol="scontrol show job gives no answer"), report("g2")
    assert "cluster.requeue=successors" in bad(*mute)["scontrol there", "failed"].remedy
    assert not bad(*mute, cluster=Cluster(requeue="successors", successors=3))
    assert not bad(report("g1", memlock=65536, has_infiniband=False), report("g2"))


def test_the_internet_of_nodes():
    reached, lost = report("g1", internet=True), report("g2", internet=False)
    assert not bad(reached, lost, cluster=Cluster(offline=True))
    found = bad(reached, lost, cluster=Cluster(offline=False))
    assert "finelaunch prefetch" in found["internet", "failed"].remedy


def test_gpus_of_nodes():
    on = profile("slurm_1x4", "launch.num_processes_per_node=2", "launch.precision=bf16")
    two = [GPU, {**GPU, "uuid": "GPU-2"}]
    assert not bad(report("g1", gpus=two, driver_cuda="12.9"), on=on)
    assert (
        "2 processes need one each" in bad(report("g1", gpus=two[:1], driver_cuda="12.9"), on=on)["gpu", "failed"].text
    )
    assert "no driver" in bad(report("g1", gpus=two, driver_cuda=None), on=on)["cuda", "failed"].text
    assert "runs 11.8 at most" in bad(report("g1", gpus=two, driver_cuda="11.8"), on=on)["cuda", "failed"].text
    assert "nvidia-smi shows none" in bad(report("g1", gpus=None, driver_cuda="12.9"), on=on)["gpu", "failed"].text
    old = [{**gpu, "capability": "7.0"} for gpu in two]
    assert "has no bf16" in bad(report("g1", gpus=old, driver_cuda="12.9"), on=on)["gpu", "failed"].text


def test_the_table_of_nvidia_smi():
    text = "NVIDIA H200, GPU-5d1c, 570.86.15, 9.0, 143771 MiB\nTesla T4, GPU-77aa, 570.86.15, 7.5, 15360 MiB\n"
    first, second = probe.parse_gpus(text)
    assert (first["name"], first["uuid"], first["capability"]) == ("NVIDIA H200", "GPU-5d1c", "9.0")
    assert (second["driver"], second["memory"]) == ("570.86.15", "15360 MiB")
    assert probe.parse_gpus("No devices were found\n") == []


def options(argv):
    return dict(word.removeprefix("--").split("=", 1) for word in argv if word.startswith("--"))


def test_the_job_that_asks():
    cluster = Cluster(partition="gpu", account="nlp", gpu_type="a100", memory="64G", srun_args=["--mpi=none"])
    found = options(argv := srun_command(cluster, profile("slurm_2x4"), {"folders": {}}))
    assert (found["nodes"], found["ntasks"], found["ntasks-per-node"]) == ("2", "2", "1")
    assert (found["partition"], found["account"], found["gres"]) == ("gpu", "nlp", "gpu:a100:4")
    assert (found["mem"], found["mpi"]) == ("1G", "none")
    assert argv[-3:] == [sys.executable, "-", '{"folders": {}}']
    style = options(srun_command(Cluster(gpus="gpus-per-node"), profile("slurm_2x4"), {}))
    assert (style["gpus-per-node"], "mem" in style) == ("4", False)
    assert "gres" not in options(srun_command(Cluster(), profile(), {}))


def test_setup_and_container_come_before_python():
    cluster = Cluster(setup=["export A='b c'"], container=["env", "B=d"], python="python3")
    argv = srun_command(cluster, profile(), {"a": "it's"})
    assert argv[-3:-1] == ["bash", "-c"]
    assert argv[-1].splitlines() == [
        "export A='b c'",
        "exec " + shlex.join(["env", "B=d", "python3", "-", '{"a": "it\'s"}']),
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("g[08-10,12],login", ["g08", "g09", "g10", "g12", "login"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("r[1-2]-ib", ["r1-ib", "r2-ib"]),
    ],
)
def test_node_lists_are_unfolded(text, names):
    assert probe.hostnames(text) == names


TEXT = st.text(max_size=300)


@given(st.lists(st.dictionaries(st.text(max_size=5), TEXT, max_size=9), max_size=4), st.randoms())
def test_answers_survive_the_way_through_srun(reports, random):
    lines = [line for task, facts in enumerate(reports) for line in probe.lines_of(str(task), facts)]
    assert all(len(line) < 1000 for line in lines)
    random.shuffle(lines)
    noise = ["module load: cuda/12.4\n", probe.BEGUN + "\n"]
    assert probe.gather([*noise, *(f"{line}\n" for line in lines)]) == reports


def test_an_answer_that_was_cut_off_is_none():
    lines = probe.lines_of("0", {"a": "x" * 2000})
    assert len(lines) == 3
    assert probe.gather(lines[:2]) == []


def test_the_probe_needs_nothing_but_python(tmp_path):
    (tmp_path / "login").write_text("abc")
    wishes = {"folders": {"run": str(tmp_path)}, "packages": ["torch"], "scratch": None, "hub": ["127.0.0.1", 9]}
    source = Path(probe.__file__).read_text()
    argv = [sys.executable, "-I", "-S", "-", json.dumps(wishes)]
    done = subprocess.run(argv, input=source, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (facts,) = probe.gather(done.stdout.splitlines())
    assert facts["folders"]["run"]["token"] == "abc"
    assert facts["packages"] == {"torch": None}, "-S hides what is installed"
    assert facts["internet"] is False
    assert (tmp_path / f"seen-{facts['node']}").read_text() == "abc"


def test_nodes_meet_at_ports_of_their_choice(tmp_path):
    found = {}

    def node(name):
        found[name] = probe.reach(tmp_path, name, ["localhost", "127.0.0.1"])

    threads = [threading.Thread(target=node, args=(name,)) for name in ("localhost", "127.0.0.1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {"localhost": {"127.0.0.1": None}, "127.0.0.1": {"localhost": None}}


def test_a_node_that_nobody_hears_of_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "PATIENCE_SECONDS", 0.1)
    assert probe.reach(tmp_path, "a", ["a", "b"]) == {"b": "b was not heard of in the folder"}
