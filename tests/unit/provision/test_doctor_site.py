"""What Slurm says of a site, and the first profile that is made of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.provision.site_texts import CAMPUS, CAMPUS_PARTITIONS, LOCAL, SILENT

from finelaunch.errors import BadInput, RequirementMissing
from finelaunch.launch.cluster import Cluster, load_cluster
from finelaunch.provision.first_profile import (
    Surroundings,
    choose_partition,
    first_profile,
    profile_file,
    require_slurm,
    write_profile,
)
from finelaunch.provision.site import (
    Association,
    NodeGroup,
    Site,
    leading_seconds,
    listed,
    parse_gres,
    parse_partitions,
    seconds_of,
)
from finelaunch.provision.volumes import Mount
from finelaunch.section.base import build
from finelaunch.section.document import read_document

DISK = [Mount("/dev/sda1", "/", "ext4")]


def surroundings(mounts=DISK, folder="/tmp/x", home="/root", interfaces=(), **environment):
    return Surroundings(environment, mounts, Path(folder), interfaces, Path(home))


def made(site, here=None, name="mine"):
    text = first_profile(name, site, here or surroundings())
    return build(Cluster, read_document(text, "mine.yaml")), text


def test_what_commands_print_is_read():
    assert LOCAL.config["AuthInfo"] == "socket=/var/lib/localslurm/munge/munge.socket,cred_expire=5"
    assert LOCAL.config["SlurmctldHost[0]"] == "vm(10.231.0.1)"
    assert list(LOCAL.partitions) == ["debug", "high"]
    assert LOCAL.partitions["debug"]["GraceTime"] == "20"
    assert LOCAL.default_partition() == "debug"
    assert LOCAL.groups_of("debug") == [NodeGroup("debug", {"": 2}, 4, 4000, 2)]
    assert list(CAMPUS.partitions) == ["cpu", "gpu-old", "gpu"]
    assert CAMPUS.partitions["gpu"]["Nodes"] == "g[01-08]"
    assert CAMPUS.groups_of("gpu")[0] == NodeGroup("gpu", {"a100": 4}, 64, 1031000, 6, ("ampere", "nvlink"))
    assert CAMPUS.groups_of("cpu")[0].memory_mib == 515000
    assert CAMPUS.associations[0] == Association("nlp", "", ("gpu_long", "normal"), "normal")
    assert CAMPUS.qos_max_wall == {"gpu_short": "02:00:00", "gpu_long": "1-00:00:00"}


def test_partitions_are_the_same_in_one_line_each():
    in_lines = [" ".join(block.split()) for block in CAMPUS_PARTITIONS.split("\n\n")]
    assert parse_partitions("\n".join(in_lines)) == CAMPUS.partitions


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu:a100:4(S:0-1)", {"a100": 4}),
        ("gpu:tesla:2(S:0),gpu:kepler:1(S:1),mps:400", {"tesla": 2, "kepler": 1}),
        ("gpu:1g.10gb:7(S:0)", {"1g.10gb": 7}),
        ("gpu:nvidia_a100-sxm4-80gb:8(S:0-7)", {"nvidia_a100-sxm4-80gb": 8}),
        ("craynetwork:4,gpu:4", {"": 4}),
        ("shard:a100:8", {}),
    ],
)
def test_gpus_are_counted_by_type(text, gpus):
    assert parse_gres(text) == gpus


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-00:00:00", 86400), ("02:00:00", 7200), ("30:00", 1800), ("2-12:30", 217800), ("UNLIMITED", None), ("", None)],
)
def test_limits_are_seconds(text, seconds):
    assert seconds_of(text) == seconds


def test_words_and_numbers_of_a_configuration():
    assert (leading_seconds("30 sec"), leading_seconds("5 min"), leading_seconds("20")) == (30, 300, 20)
    assert leading_seconds("(null)") is None
    assert listed("ALL") is None
    assert listed("nlp,vision") == ["nlp", "vision"]


def test_the_profile_of_the_local_cluster():
    cluster, text = made(LOCAL)
    assert (cluster.partition, cluster.account, cluster.qos) == ("debug", "root", None)
    assert (cluster.gpus, cluster.gpu_type, cluster.cpus_per_task) == ("gres", None, 2)
    assert (cluster.memory, cluster.time_limit) == (None, "04:00:00")
    assert "200 MiB a CPU where it is not set (DefMemPerCPU)" in text
    assert "# Slurm 22.05.8, cluster localslurm" in text
    assert "none of these is on a network file system" in text


def test_the_profile_of_a_site_with_accounts_and_types():
    cluster, text = made(CAMPUS)
    assert cluster.partition == "gpu", "the default one has no GPUs, gpu-old is not open to these accounts"
    assert (cluster.account, cluster.qos) == ("nlp", "gpu_long"), "its default QOS is not allowed there"
    assert (cluster.gpu_type, cluster.cpus_per_task) == ("a100", 16)
    assert cluster.time_limit == "02:00:00", "the partition's limit is shorter than the usual time"
    assert "a job takes all of a node, 515000 MiB" in text
    for line in text.splitlines():
        assert line.startswith("#") or "  # " in line, f"every value says where it comes from: {line}"


def test_the_limit_of_a_qos_counts():
    site = replace(CAMPUS, default_account="vision", qos_max_wall={"gpu_short": "00:30:00"})
    cluster, text = made(site)
    assert (cluster.account, cluster.qos) == ("vision", None), "its default QOS is allowed there"
    assert cluster.time_limit == "00:30:00"
    assert "# QOS gpu_short" in text


def test_a_default_partition_without_gpus_is_taken_where_no_other_has_any():
    site = Site(partitions=CAMPUS.partitions, groups=CAMPUS.groups[:1])
    assert choose_partition(site) == ("cpu", "scontrol show partition: the default")


def test_sinfo_alone_makes_a_profile():
    site = Site(groups=CAMPUS.groups, silent={"scontrol show config": "scontrol gave no answer within 20 s"})
    cluster, text = made(site)
    assert cluster.partition == "gpu-old"
    assert "# not known: scontrol show config said nothing: scontrol gave no answer within 20 s" in text
    assert "# account: not known" in text


def test_several_types_are_left_to_the_user():
    groups = (*CAMPUS.groups, NodeGroup("gpu", {"h100": 8}, 192, 2000000, 4))
    cluster, text = made(Site(CAMPUS.config, CAMPUS.partitions, groups, CAMPUS.associations, "nlp"))
    assert cluster.gpu_type is None
    assert "# gpu_type: one of a100, h100" in text


def test_a_site_without_slurm_is_refused_in_one_sentence():
    silent = {"scontrol show config": "scontrol is not installed here", "sinfo": "sinfo is not installed here"}
    with pytest.raises(RequirementMissing, match="there is no Slurm here") as missing:
        require_slurm(Site(silent=silent))
    assert "\n" not in str(missing.value)
    with pytest.raises(RequirementMissing, match="Slurm does not answer"):
        require_slurm(Site(silent={"sinfo": "sinfo gave no answer within 20 s"}))
    require_slurm(Site(groups=CAMPUS.groups, silent=SILENT.silent))


@pytest.mark.parametrize(
    ("mounts", "folder", "shared", "hub"),
    [
        ([*DISK, Mount("fs:/home", "/usr", "nfs4")], "/usr/lib", "/usr", "/usr/.cache/huggingface"),
        ([*DISK, Mount("fs:/lib", "/usr/lib", "lustre")], "/usr/lib", "/usr/lib", "/usr/lib/huggingface"),
        (DISK, "/usr/lib", None, None),
    ],
)
def test_shared_folders_are_proposed(mounts, folder, shared, hub):
    cluster, text = made(LOCAL, surroundings(mounts, folder, home="/usr"))
    assert (cluster.shared_folder, cluster.hf_home) == (shared, hub)
    assert f"# the current folder {folder} lies on" in text


def test_hints_are_comments():
    here = surroundings(interfaces=["eth0", "ib0"], LOADEDMODULES="gcc/12.3:cuda/12.4", WORK="/usr", HF_TOKEN="canary")
    cluster, text = made(LOCAL, here)
    assert cluster.env == {}
    assert "NCCL_SOCKET_IFNAME: ib0" in text
    assert "module load gcc/12.3 cuda/12.4" in text
    assert "# $WORK /usr lies on ext4" in text
    assert "canary" not in text


HARD = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@given(HARD.filter(lambda text: text.strip() and text.isprintable()), HARD, HARD)
def test_no_name_of_a_site_breaks_the_file(partition, feature, why):
    site = Site(
        partitions={partition: {"Default": "YES", "State": "UP"}},
        groups=(NodeGroup(partition, {"a100": 1}, 8, 1000, 1, (feature,)),),
        silent={"sacctmgr": why},
    )
    text = first_profile("mine", site, surroundings())
    values = read_document(text, "mine.yaml").values
    assert values["partition"] == partition
    assert values["gpu_type"] == "a100"


def test_a_profile_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, kept = write_profile("mine", first_profile("mine", LOCAL, surroundings()), force=False)
    assert (path, kept) == (Path("slurm/clusters/mine.yaml"), None)
    assert load_cluster("mine")[0].partition == "debug"
    with pytest.raises(BadInput, match="is there already"):
        write_profile("mine", first_profile("mine", CAMPUS, surroundings()), force=False)
    assert load_cluster("mine")[0].partition == "debug"
    for number in (1, 2):
        path, kept = write_profile("mine", first_profile("mine", CAMPUS, surroundings()), force=True)
        assert kept == Path(f"slurm/clusters/mine.yaml.{number}")
    assert load_cluster("mine")[0].partition == "gpu"
    assert "partition: debug" in Path("slurm/clusters/mine.yaml.1").read_text()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("slurm").write_text("a file")
    with pytest.raises(BadInput, match="cannot be written"):
        write_profile("mine", first_profile("mine", LOCAL, surroundings()), force=False)


def test_where_a_profile_goes():
    assert profile_file("mine") == Path("slurm/clusters/mine.yaml")
    assert profile_file("sites/mine.yaml") == Path("sites/mine.yaml")
    for name in ("", " ", "..", "a\nb"):
        with pytest.raises(BadInput, match="is no name"):
            profile_file(name)
