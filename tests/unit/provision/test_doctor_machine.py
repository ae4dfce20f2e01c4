"""Checks of one machine: software, driver, GPUs, room and quotas, clock."""

import os
import sys
from pathlib import Path

import pytest

from finelaunch.errors import Problem
from finelaunch.launch.profile import load_profile
from finelaunch.models.size import model_size
from finelaunch.provision import checks_machine, probe
from finelaunch.provision.checks_machine import Need, check_room
from finelaunch.provision.doctor import is_true, offline_checks
from finelaunch.provision.footprint import estimated_checkpoint_bytes, num_checkpoints, steps_in_all
from finelaunch.provision.resolve import Resolved
from finelaunch.provision.verdicts import Check, as_json, has_failed, totals
from finelaunch.provision.volumes import (
    Mount,
    Room,
    existing,
    mount_of,
    parse_mounts,
    parse_quota,
    parse_quota_numbers,
    read_mounts,
    rooms,
)
from finelaunch.recipe.load import load_recipe, read_overrides


def profile(name="gpu", *words):
    return load_profile(name, read_overrides(words)["launch"])[0]


def recipe(*words):
    return load_recipe("imdb/smoke", read_overrides(words)["recipe"])


def states(checks):
    return [check.state for check in checks]


def test_python_and_packages():
    assert checks_machine.check_python("3.12.1", ">=3.11").state == "ok"
    assert checks_machine.check_python("3.9.2", ">=3.11").state == "failed"
    wanted = {"torch": ">=2.10", "transformers": "<6,>=5.3"}
    assert states(checks_machine.check_packages({"torch": "2.13.0+cpu", "transformers": "5.23.0"}, wanted)) == ["ok"]
    wrong = checks_machine.check_packages({"torch": "2.4.0", "transformers": None}, wanted)
    assert states(wrong) == ["failed", "failed"]
    assert "torch 2.4.0 is not supported, >=2.10 is" in wrong[0].text
    assert wrong[1].remedy == "pip install 'transformers<6,>=5.3'"


def test_packages_that_a_profile_adds():
    base = checks_machine.wanted_packages()
    assert base["torch"] == ">=2.10"
    assert not {"deepspeed", "submitit", "peft", "pytest"} & set(base)
    more = checks_machine.wanted_packages(["deepspeed", "slurm", "qlora"])
    assert {"deepspeed", "submitit", "peft", "bitsandbytes"} == set(more) - set(base)


@pytest.mark.parametrize(
    ("torch_cuda", "driver", "state"),
    [
        ("13.0", "13.1", "ok"),
        ("12.8", "12.4", "ok"),  # any driver of the same major version
        ("12.8", "13.0", "ok"),
        ("13.0", "12.8", "failed"),
        ("13.0", None, "failed"),
        ("", "12.8", "failed"),
        (None, "12.8", "not checked"),
    ],
)
def test_the_driver_must_run_what_torch_was_built_for(torch_cuda, driver, state):
    assert checks_machine.check_driver(profile(), torch_cuda, driver).state == state
    assert checks_machine.check_driver(profile("cpu"), torch_cuda, driver).state == "ok"


@pytest.mark.parametrize(
    ("kind", "capability"),
    [
        ("a100", 8.0),
        ("nvidia_a100-sxm4-80gb", 8.0),
        ("V100", 7.0),
        ("tesla_t4", 7.5),
        ("h200", 9.0),
        ("mi250", None),
        ("gpu", None),
    ],
)
def test_the_names_of_types_say_what_they_can(kind, capability):
    assert checks_machine.capability_of(kind) == capability


@pytest.mark.parametrize(
    ("words", "method", "capability", "torch_cuda", "state"),
    [
        (["launch.precision=bf16"], "full", 8.0, "12.8", "ok"),
        (["launch.precision=bf16"], "full", 7.5, "12.8", "failed"),
        (["launch.precision=tf32"], "full", 7.0, "12.8", "failed"),
        (["launch.precision=fp16"], "full", 7.0, "12.8", "ok"),
        ([], "full", 7.0, "12.8", "ok"),
        ([], "full", 7.0, "13.0", "failed"),
        ([], "full", 7.5, "13.0", "ok"),
        ([], "qlora", 5.2, "12.6", "failed"),
        ([], "qlora", 6.0, "12.6", "ok"),
        ([], "qlora", None, "12.6", "not checked"),
    ],
)
def test_gpus_must_do_what_is_asked_of_them(words, method, capability, torch_cuda, state):
    checks = checks_machine.check_gpus(profile("gpu", *words), method, {"x": capability}, torch_cuda)
    assert states(checks) == [state], checks


def test_what_auto_takes_is_said():
    old, new = (checks_machine.check_gpus(profile(), None, {"x": at}, "12.8")[0].text for at in (7.0, 9.0))
    assert "fp16" in old
    assert "bf16" in new


def need(num_bytes, num_files=40, purpose="4 checkpoints"):
    return Need(Path("/data"), num_bytes, num_files, purpose)


def test_room_is_held_against_every_limit():
    both = [Room(10 << 30, 1000, "the file system"), Room(1 << 30, 50, "the quota of user a")]
    assert states(check_room(both, [need(1 << 29)])) == ["ok"]
    (few_bytes,) = check_room(both, [need(2 << 30)])
    assert few_bytes.state == "failed"
    assert "1.0 GiB are left of the quota of user a, needed are 4 checkpoints" in few_bytes.text
    (few_files,) = check_room(both, [need(1 << 20, 51)])
    assert few_files.state == "failed"
    assert "50 files are left of the quota of user a, and 51 may be written" in few_files.text
    assert states(check_room([Room(None, None, "x"), both[0]], [need(1 << 30)])) == ["ok"]


def test_what_lies_on_one_file_system_is_added_up():
    disk = [Room(1 << 30, 100, "the file system")]
    assert states(check_room(disk, [need(3 << 28), need(1 << 28)])) == ["ok"]
    (check,) = check_room(disk, [need(3 << 28), need(2 << 28, purpose="the cache")])
    assert "needed are 4 checkpoints + the cache" in check.text
    assert states(check_room(disk, [need(1, 60), need(1, 60)])) == ["failed"]
    (unsaid,) = check_room(disk, [need(None, purpose="what a checkpoint takes is unknown"), need(1 << 20)])
    assert (unsaid.state, unsaid.text.split("; ")[-1]) == ("not checked", "what a checkpoint takes is unknown")
    assert states(check_room(disk, [need(None), need(2 << 30)])) == ["failed"], "what is known is too much"


def test_clocks_that_differ():
    verdicts = {at: checks_machine.check_clock(at, Path("/data")).state for at in (0.2, -3.0, 12.0, -12.0, 60.0, None)}
    assert list(verdicts.values()) == ["ok", "ok", "warning", "warning", "failed", "not checked"]
    assert "12 s behind" in checks_machine.check_clock(-12.0, Path("/data")).text


def test_folders_that_cannot_be_written():
    for name, state in (("run directory", "failed"), ("cache", "failed"), ("hub cache", "warning")):
        assert checks_machine.check_writable(name, Path("/x"), 0.0).state == "ok"
        assert checks_machine.check_writable(name, Path("/x"), None).state == state


def test_the_proof_without_a_network():
    good = Resolved(["tokenizer: 30,522 tokens"], ["the data is not tokenised"])
    assert states(offline_checks(good, True)) == ["ok"]
    bad = Resolved(problems=[Problem("", "model", "a/b: nothing was fetched", "", "first: finelaunch prefetch x")])
    (check,) = offline_checks(bad, True)
    assert (check.state, check.remedy) == ("failed", "first: finelaunch prefetch x")
    assert check.text == "without a network: model: a/b: nothing was fetched"
    assert states(offline_checks(bad, False)) == ["warning"], "there is a network"
    assert [is_true(text) for text in ("1", "on", "", "0", "false")] == [True, True, False, False, False]


MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
fs1:/export/home /home nfs4 rw,vers=4.2 0 0
10.0.0.1@o2ib:/work /work lustre rw,flock 0 0
tmpfs /dev/shm tmpfs rw 0 0
fs2:/my\\040data /my\\040data nfs rw 0 0
"""


def test_mounts_are_found():
    mounts = parse_mounts(MOUNTS)
    assert mounts[1] == Mount("fs1:/export/home", "/home", "nfs4")
    assert mounts[4].folder == "/my data"
    assert [mount.is_network for mount in mounts] == [False, True, True, False, True]
    found = mount_of(Path("/usr/lib"), [*mounts, Mount("fs:/x", "/usr", "nfs")])
    assert found is not None
    assert found.folder == "/usr"
    assert mount_of(Path("/usr/lib"), mounts) == mounts[0], "/us is not above /usr, and neither is /home"


# quota -w -p -u -g
QUOTA = """\
Disk quotas for user ada (uid 1001):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
fs1:/export/home 9000000* 8000000 10000000 1763800000   95000  0       100000       0
/dev/sdb1            12   0 0 0 3 0 0 0
Disk quotas for group nlp (gid 2000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
fs1:/export/home 100 0 200 0 10 20 0 0
"""


def test_quotas_are_read():
    home = parse_mounts(MOUNTS)[1]
    assert parse_quota(QUOTA, home) == [
        Room(1_000_000 * 1024, 5000, "the quota of user ada"),
        Room(100 * 1024, 10, "the quota of group nlp"),
    ]
    lustre = "      /work  [2097152]  0 3145728 - 12 100 0 -\n"
    assert parse_quota_numbers(lustre, "x") == Room(1 << 30, 88, "x")
    assert parse_quota_numbers("/work 12 0 0 - 1 0 0 -", "x") == Room(None, None, "x")
    assert parse_quota_numbers("/work: permission denied", "x") == Room(None, None, "x")


def test_the_room_of_this_machine(tmp_path):
    found = rooms(tmp_path / "not" / "there", read_mounts())
    assert found[0].what == "the file system"
    assert found[0].bytes_left == pytest.approx(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize, rel=0.1)
    assert existing(tmp_path / "not" / "there") == tmp_path


@pytest.mark.parametrize(
    ("words", "steps", "count"),
    [
        ([], 68, 4),
        (["training.save_total_limit=5"], 68, 7),
        (["training.save_total_limit=null", "training.save_strategy=steps", "training.save_steps=10"], 68, 8),
        (["training.save_total_limit=null", "training.save_strategy=steps", "training.save_steps=10"], None, None),
        (["training.save_total_limit=null", "training.num_train_epochs=3"], None, 4),
        (["training.save_total_limit=null", "training.save_strategy=no"], None, 2),
    ],
)
def test_checkpoints_that_lie_on_the_disk(words, steps, count):
    assert num_checkpoints(recipe(*words)[0], steps) == count


def test_a_checkpoint_is_weights_and_two_moments():
    loaded, _ = recipe()
    size = model_size(loaded.model, loaded.task.name, 2)
    made, document, _ = load_profile("cpu")
    assert not isinstance(size, str)
    taken = estimated_checkpoint_bytes(size, loaded, made, document)
    assert taken == pytest.approx(12 * size.num_parameters + (4 << 20), rel=1e-6)
    sgd = recipe("training.optim=sgd")[0]
    assert estimated_checkpoint_bytes(size, sgd, made, document) < taken
    zero, zero_document, _ = load_profile("cpu_zero2")
    assert estimated_checkpoint_bytes(size, loaded, zero, zero_document) > taken


def test_the_steps_of_a_run():
    assert steps_in_all(*recipe("training.max_steps=7")) == 7
    loaded, document = load_recipe("squad_v2/distilbert")
    assert steps_in_all(loaded, document) is None, "the hub is not asked"


def test_this_machine_describes_itself(tmp_path):
    assert probe.versions(["pytest", "no-such-package"]) == {"pytest": pytest.__version__, "no-such-package": None}
    assert abs(probe.clock(tmp_path) or 9) < 5
    assert probe.clock(tmp_path / "not" / "there") is None
    assert probe.address_of("localhost") == "127.0.0.1"
    assert probe.address_of("a" * 300) is None, "no name at all"
    assert probe.within(0.05, lambda: __import__("time").sleep(5)) is None
    assert probe.output(["false"]) is None
    assert probe.output([sys.executable, "-c", "print(1)"]) == "1\n"
    assert probe.output([sys.executable, "-c", "import time; time.sleep(9)"], 0.2) is None


def test_the_umask_is_read_and_stays():
    before = os.umask(0o027)
    try:
        assert (probe.umask(), probe.umask()) == ("027", "027")
    finally:
        os.umask(before)


def test_torch_is_read_and_not_loaded():
    import subprocess

    code = "import sys; from finelaunch.provision import probe; print(probe.torch_cuda(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    expected = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.version.cuda or '', False)"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == expected.stdout


def test_scratch_is_where_its_variables_say(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    found = probe.scratch(f"{tmp_path}/a/$SLURM_JOB_ID")
    assert found["path"] == f"{tmp_path}/a/12"
    assert (found["below"], found["writable"]) == (str(tmp_path), True)
    assert found["free"] > 0


def test_a_check_is_one_line():
    check = Check("room", "failed", "a\nb\x1b[31m", "do this")
    assert str(check) == "failed       room                a b [31m; do this"
    checks = [check, Check("x", "ok", "y"), Check("x", "ok", "y")]
    assert totals(checks) == "2 ok, 1 failed"
    assert has_failed(checks)
    assert not has_failed(checks[1:])
    assert '"passed": false' in as_json(checks)
