"""Checks of a cluster: what Slurm says against the profiles."""

import json
from dataclasses import replace

import pytest
from unit.provision.site_texts import CAMPUS, LOCAL, SILENT

from finelaunch.launch.cluster import Cluster
from finelaunch.launch.profile import load_profile
from finelaunch.launch.runs import longest_save
from finelaunch.provision import checks_slurm
from finelaunch.provision.site import Site
from finelaunch.recipe.load import read_overrides
from finelaunch.run.directory import RunDirectory
from finelaunch.section.document import Document
from finelaunch.slurm.commands import Answer

NO_DOCUMENT = Document({}, {}, "mine.yaml")


def profile(name="slurm_cpu_2x2", *words):
    return load_profile(name, read_overrides(words)["launch"])[0]


def states(checks):
    return [check.state for check in checks]


def campus(**keys):
    given = {"partition": "gpu", "account": "nlp", "qos": "gpu_long", "time_limit": "02:00:00", "gpu_type": "a100"}
    return Cluster(**{**given, "cpus_per_task": 16, **keys})


def with_config(site, **keys):
    return replace(site, config={**site.config, **keys})


def with_partition(site, name, **keys):
    return replace(site, partitions={**site.partitions, name: {**site.partitions[name], **keys}})


def test_commands():
    there, lost = Answer(True), Answer(False, why="squeue gave no answer within 20 s")
    answers = dict.fromkeys(("sbatch", "srun", "scontrol", "squeue", "sacct"), there)
    assert states(checks_slurm.check_commands(answers)) == ["ok", "ok"]
    silent = checks_slurm.check_commands({**answers, "squeue": lost})
    assert (silent[0].state, silent[0].text) == ("failed", "squeue: gave no answer within 20 s")
    none = Answer(False, why="Slurm accounting storage is disabled")
    without = checks_slurm.check_commands({**answers, "sacct": none})
    assert states(without) == ["ok", "warning"]
    assert "status will use squeue and the run's files" in without[1].text


@pytest.mark.parametrize(
    ("cluster", "site", "state", "says"),
    [
        (Cluster(), LOCAL, "ok", "debug is up, with 2 nodes"),
        (Cluster(partition="debug"), LOCAL, "ok", "debug is up"),
        (Cluster(partition="nope"), LOCAL, "failed", "there is no nope"),
        (campus(), CAMPUS, "ok", "gpu is up, with 8 nodes"),
        (campus(account="physics"), CAMPUS, "failed", "not open to account physics, but to nlp, vision"),
        (campus(qos="normal"), CAMPUS, "failed", "not open to QOS normal"),
        (campus(), with_partition(CAMPUS, "gpu", State="DOWN"), "failed", "gpu is DOWN"),
        (campus(), with_partition(CAMPUS, "gpu", MaxNodes="1"), "failed", "gpu allows 1 nodes"),
        (Cluster(), with_partition(LOCAL, "debug", Default="NO"), "failed", "has no default one"),
        (Cluster(), SILENT, "not checked", ""),
    ],
)
def test_the_partition(cluster, site, state, says):
    found = checks_slurm.check_partition(cluster, profile(), site)
    assert states(found) == [state], found
    assert says in found[0].text


@pytest.mark.parametrize(
    ("cluster", "words", "site", "state", "says"),
    [
        (campus(), ["slurm_2x4"], CAMPUS, "ok", "8 of gpu have 4 a100 GPUs a node, 64 cores a node"),
        (campus(gpu_type=None), ["slurm_2x4"], CAMPUS, "ok", "4 GPUs a node"),
        (campus(gpu_type="h100"), ["slurm_2x4"], CAMPUS, "failed", "4 h100 GPUs a node: they have a100 x 4"),
        (campus(), ["slurm_2x4", "launch.num_processes_per_node=8"], CAMPUS, "failed", "0 of gpu fit"),
        (campus(cpus_per_task=17), ["slurm_2x4"], CAMPUS, "failed", "68 cores a node: they have 64 cores"),
        (campus(memory="600G"), ["slurm_2x4"], CAMPUS, "ok", "6 of gpu"),
        (campus(memory="2T"), ["slurm_2x4"], CAMPUS, "failed", "memory 2T a node"),
        (campus(constraint="nvlink"), ["slurm_2x4", "launch.num_nodes=6"], CAMPUS, "ok", "6 of gpu"),
        (campus(constraint="nvlink"), ["slurm_2x4", "launch.num_nodes=7"], CAMPUS, "failed", "6 of gpu fit, 7 are"),
        (campus(constraint="[a|b]"), ["slurm_2x4"], CAMPUS, "ok", "8 of gpu"),
        (Cluster(), ["slurm_cpu_2x2"], LOCAL, "ok", "2 of debug have 2 cores a node"),
        (Cluster(), ["slurm_1x4"], LOCAL, "failed", "4 GPUs a node: they have gpu x 2"),
        (Cluster(), ["slurm_cpu_2x2"], replace(LOCAL, groups=()), "not checked", "sinfo says nothing"),
    ],
)
def test_the_nodes(cluster, words, site, state, says):
    found = checks_slurm.check_nodes(cluster, profile(*words), site)
    assert states(found) == [state], found
    assert says in found[0].text


def test_memory_is_read_as_slurm_reads_it():
    assert [checks_slurm.memory_mib(text) for text in ("4000", "4000M", "64G", "1T", "64GB")] == [
        4000,
        4000,
        65536,
        1048576,
        65536,
    ]
    assert checks_slurm.memory_mib("much") is None


def test_the_time_limit():
    def look(cluster, site, save_seconds=None):
        return checks_slurm.check_time_limit(cluster, NO_DOCUMENT, site, save_seconds)[0]

    assert look(campus(), CAMPUS).state == "ok"
    assert "jobs may run over by 5 min" in look(campus(), CAMPUS).text
    longer = look(campus(time_limit="04:00:00"), CAMPUS)
    assert (longer.state, longer.text) == ("failed", "04:00:00 is more than gpu allows, 02:00:00")
    short = look(campus(time_limit="00:04:00"), CAMPUS)
    assert short.state == "failed"
    assert "no time for progress" in short.text
    assert look(campus(time_limit="00:10:00"), CAMPUS, 2.0).state == "ok"
    assert look(campus(time_limit="00:10:00"), CAMPUS, 100.0).state == "failed", "a save takes too long"
    assert "debug has no limit" in look(Cluster(), LOCAL).text


def test_requeue():
    def look(site, **keys):
        return checks_slurm.check_requeue(campus(**keys), site, None)[0]

    assert "5 s or more pass" in checks_slurm.check_requeue(Cluster(), LOCAL, None)[0].text
    assert "120 s or more pass" in look(CAMPUS).text, "Slurm's default"
    assert look(CAMPUS).state == "warning", "JobRequeue=0"
    assert look(with_config(CAMPUS, JobRequeue="1")).state == "ok"
    assert "3 jobs that wait take over" in look(CAMPUS, requeue="successors", successors=3).text
    assert look(SILENT).state == "not checked"


def test_the_signal_of_a_preemption_has_moved():
    assert checks_slurm.sends_user_signal({"SlurmctldParameters": "a,preempt_send_user_signal"})
    assert checks_slurm.sends_user_signal({"PreemptParameters": "send_user_signal,youngest_first"})
    assert not checks_slurm.sends_user_signal({"PreemptParameters": "(null)", "SlurmctldParameters": "(null)"})
    assert checks_slurm.sends_user_signal(LOCAL.config)
    assert checks_slurm.sends_user_signal(CAMPUS.config)


@pytest.mark.parametrize(
    ("cluster", "site", "checkpoint_bytes", "state", "says"),
    [
        (Cluster(), LOCAL, 5 << 20, "ok", "REQUEUE: USR2, then 20 s (GraceTime)"),
        (Cluster(), LOCAL, 10 << 30, "warning", "saving may take 117 s"),
        (Cluster(), with_config(LOCAL, SlurmctldParameters="(null)"), None, "ok", "TERM alone"),
        (Cluster(partition="high"), LOCAL, None, "ok", "jobs of high are not preempted"),
        (campus(), CAMPUS, 1 << 30, "ok", "REQUEUE: USR2, then 0 s (GraceTime) until the end, and 30 s"),
        (campus(), CAMPUS, 10 << 30, "warning", "saving may take"),
        (campus(), with_config(CAMPUS, PreemptType="preempt/none"), None, "ok", "are not preempted"),
        (campus(), with_config(CAMPUS, PreemptType="(null)"), None, "ok", "are not preempted"),  # as 25.05 prints it
        (campus(), with_partition(CAMPUS, "gpu", PreemptMode="CANCEL"), None, "warning", "cancelled, not requeued"),
        (campus(), with_partition(CAMPUS, "gpu", PreemptMode="GANG,SUSPEND"), None, "warning", "stand still"),
        (campus(partition="nope"), CAMPUS, None, "not checked", "nothing is known of nope"),
    ],
)
def test_preemption(cluster, site, checkpoint_bytes, state, says):
    check = checks_slurm.check_requeue(cluster, site, checkpoint_bytes)[1]
    assert (check.name, check.state) == ("preemption", state), check
    assert says in check.text


def test_the_run_time(tmp_path):
    def look(steps, seconds, **keys):
        return checks_slurm.check_run_time(campus(**keys), None, steps, seconds)

    assert look(None, 1.0).state == "not checked"
    assert look(100, None).state == "not checked"
    assert look(0, None).state == "ok"
    short = look(1000, 3.0)
    assert (short.state, short.text) == ("ok", "1,000 steps of 3 s take about 50 min, and a job has 1 h 55 min")
    assert "requeued about 4 times" in look(10_000, 3.0).text
    few = look(10_000, 3.0, requeue="successors", successors=2)
    assert (few.state, "cluster.successors to 4" in few.remedy) == ("warning", True)
    assert look(10, 1.0, time_limit="00:04:00").state == "failed"


def test_speed_and_saves_are_those_of_the_run(tmp_path):
    log, run = tmp_path / "train_log.jsonl", RunDirectory(tmp_path)
    assert checks_slurm.measured_step(log, 16) == (None, 0)
    rows = [{"step": step, "samples_per_second": speed} for step, speed in ((10, 1.0), (20, 32.0), (30, 32.0))]
    log.write_text("\n".join(map(json.dumps, [*rows, {"step": 30, "eval_loss": 1.0}])))
    assert checks_slurm.measured_step(log, 16) == (0.5, 30)
    assert longest_save(run) is None
    run.events.write_text(
        '{"event": "saved", "total_seconds": 2.5}\n{"event": "saved", "total_seconds": 1}\n{"event": "x"}'
    )
    assert longest_save(run) == 2.5


def test_scripts_folders_groups_and_names(tmp_path):
    assert checks_slurm.check_script(Answer(True)).state == "ok"
    assert checks_slurm.check_script(None).state == "not checked"
    refused = checks_slurm.check_script(Answer(False, why="sbatch: error: invalid partition"))
    assert (refused.state, refused.text) == ("failed", "sbatch --test-only: invalid partition")
    shared = Cluster(shared_folder=str(tmp_path))
    assert checks_slurm.check_shared(Cluster(), tmp_path) == []
    assert states(checks_slurm.check_shared(shared, tmp_path / "runs" / "a")) == ["ok"]
    assert states(checks_slurm.check_shared(shared, tmp_path.parent)) == ["failed"]
    assert checks_slurm.check_group(None, ()) == []
    assert states(checks_slurm.check_group("lab", ["lab", "users"])) == ["ok"]
    assert states(checks_slurm.check_group("other", ["lab"])) == ["failed"]
    assert states(checks_slurm.check_names({"n1": "10.0.0.1"})) == ["ok"]
    assert states(checks_slurm.check_names({"n1": "10.0.0.1", "n2": None})) == ["warning"]
    assert checks_slurm.check_names({}) == []


def test_nothing_is_known_of_an_empty_site():
    for check in (checks_slurm.check_partition, checks_slurm.check_nodes):
        assert states(check(Cluster(), profile(), Site())) == ["not checked"]
