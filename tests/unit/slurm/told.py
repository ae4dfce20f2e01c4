"""What Slurm 22.05.8 has really said of small jobs: four tasks on two nodes, one of which did what the name says."""

import stat
from pathlib import Path

SACCT = {
    "done": """\
2|COMPLETED|0:0|0:0|1|5|node[1-2]|2026-11-22T07:14:02|2026-11-22T07:14:02|2026-11-22T07:14:03|None|root|debug
2.batch|COMPLETED|0:0||1||node1|2026-11-22T07:14:02|2026-11-22T07:14:02|2026-11-22T07:14:03|||
2.0|COMPLETED|0:0||1||node[1-2]|2026-11-22T07:14:02|2026-11-22T07:14:02|2026-11-22T07:14:03|||
""",
    "raise": """\
3|FAILED|15:0|0:15|2|5|node[1-2]|2026-11-22T07:14:02|2026-11-22T07:14:02|2026-11-22T07:14:04|None|root|debug
3.batch|FAILED|15:0||2||node1|2026-11-22T07:14:02|2026-11-22T07:14:02|2026-11-22T07:14:04|||
3.0|CANCELLED|0:15||2||node[1-2]|2026-11-22T07:14:02|2026-11-22T07:14:02|2026-11-22T07:14:04|||
""",
    "timeout": """\
6|TIMEOUT|0:0|0:0|79|1|node[1-2]|2026-11-22T07:19:51|2026-11-22T07:19:51|2026-11-22T07:21:10|None|root|debug
6.batch|CANCELLED|0:15||79||node1|2026-11-22T07:19:51|2026-11-22T07:19:51|2026-11-22T07:21:10|||
6.0|CANCELLED|0:15||79||node[1-2]|2026-11-22T07:19:51|2026-11-22T07:19:51|2026-11-22T07:21:10|||
""",
    "cancel": """\
7|CANCELLED by 0|0:0|0:0|5|5|node[1-2]|2026-11-22T07:14:35|2026-11-22T07:14:35|2026-11-22T07:14:40|None|root|debug
7.batch|CANCELLED|0:15||5||node1|2026-11-22T07:14:35|2026-11-22T07:14:35|2026-11-22T07:14:40|||
7.0|CANCELLED|0:15||5||node[1-2]|2026-11-22T07:14:35|2026-11-22T07:14:35|2026-11-22T07:14:40|||
""",
    "requeue, at once": """\
8|REQUEUED|0:0|0:0|38|5|node[1-2]|2026-11-22T07:14:35|2026-11-22T07:14:41|2026-11-22T07:15:19|None|root|debug
8.batch|REQUEUED|0:0||38||node1|2026-11-22T07:14:41|2026-11-22T07:14:41|2026-11-22T07:15:19|||
8.0|REQUEUED|0:0||38||node[1-2]|2026-11-22T07:14:41|2026-11-22T07:14:41|2026-11-22T07:15:19|||
""",
    "requeue, waiting": """\
8|REQUEUED|0:0|0:0|38|5|node[1-2]|2026-11-22T07:14:35|2026-11-22T07:14:41|2026-11-22T07:15:19|None|root|debug
8.batch|CANCELLED|0:15||38||node1|2026-11-22T07:14:41|2026-11-22T07:14:41|2026-11-22T07:15:19|||
8.0|CANCELLED|0:15||38||node[1-2]|2026-11-22T07:14:41|2026-11-22T07:14:41|2026-11-22T07:15:19|||
8|PENDING|0:0|0:0|0|5|None assigned|2026-11-22T07:15:19|Unknown|Unknown|BeginTime|root|debug
""",
    "requeue, done": """\
8|REQUEUED|0:0|0:0|38|5|node[1-2]|2026-11-22T07:14:35|2026-11-22T07:14:41|2026-11-22T07:15:19|None|root|debug
8.batch|CANCELLED|0:15||38||node1|2026-11-22T07:14:41|2026-11-22T07:14:41|2026-11-22T07:15:19|||
8.0|CANCELLED|0:15||38||node[1-2]|2026-11-22T07:14:41|2026-11-22T07:14:41|2026-11-22T07:15:19|||
8|COMPLETED|0:0|0:15|1|5|node[1-2]|2026-11-22T07:15:19|2026-11-22T07:15:25|2026-11-22T07:15:26|BeginTime|root|debug
8.batch|COMPLETED|0:0||1||node1|2026-11-22T07:15:25|2026-11-22T07:15:25|2026-11-22T07:15:26|||
8.0|COMPLETED|0:0||1||node[1-2]|2026-11-22T07:15:25|2026-11-22T07:15:25|2026-11-22T07:15:26|||
""",
    "never started": """\
9|CANCELLED by 0|0:0|0:0|0|5|None assigned|2026-11-22T07:14:35|None|2026-11-22T07:14:43|Dependency|root|debug
""",
}

SQUEUE = """\
3|FAILED|NonZeroExitCode|node[1-2]|0:02|5:00|2026-11-22T07:14:02|2026-11-22T07:14:04|2026-11-22T07:14:02|root|debug
8|PENDING|Resources||0:00|5:00|2026-11-22T07:15:05|2026-11-22T07:20:05|2026-11-22T07:14:35|root|debug
9|PENDING|DependencyNeverSatisfied||0:00|5:00|N/A|N/A|2026-11-22T07:14:35|root|debug
10|PENDING|Dependency||0:00|5:00|N/A|N/A|2026-11-22T07:14:35|root|debug
11|PENDING|BeginTime||0:00|5:00|2026-11-22T08:14:35|2026-11-22T08:19:35|2026-11-22T07:14:35|root|debug
13|PENDING|Priority||0:00|5:00|2026-11-22T07:20:00|2026-11-22T07:25:00|2026-11-22T07:14:38|root|debug
12|PENDING|JobHeldUser||0:00|5:00|N/A|N/A|2026-11-22T07:14:35|root|debug
6|RUNNING|None|node[1-2]|0:35|1:00|2026-11-22T07:14:05|2026-11-22T07:15:05|2026-11-22T07:14:02|root|debug
"""

_REQUEUED = (
    "JobId=8 JobName=cap_requeue UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=4294901752 Nice=0 Account=root "
    "QOS=normal JobState={state} Reason={reason} Dependency=(null) Requeue=1 Restarts=1 BatchFlag=1 Reboot=0 "
    "ExitCode=0:0 DerivedExitCode=0:15 RunTime={run} TimeLimit=00:05:00 TimeMin=N/A SubmitTime=2026-11-22T07:15:19 "
    "EligibleTime=2026-11-22T07:15:25 AccrueTime=2026-11-22T07:15:25 StartTime=2026-11-22T07:15:25 EndTime={end} "
    "Deadline=N/A SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-22T07:14:41 Scheduler=Main Partition=debug "
    "AllocNode:Sid=localhost:16704 ReqNodeList=(null) ExcNodeList=(null) NodeList={nodes} NumNodes=2 NumCPUs=4 "
    "NumTasks=4 CPUs/Task=1 ReqB:S:C:T=0:0:*:* TRES=cpu=4,mem=800M,node=2,billing=4 Socks/Node=* "
    "Command=/runs/job.sh requeue WorkDir=/runs StdErr=/runs/a b/slurm/8_0_log.err StdIn=/dev/null "
    "StdOut=/runs/a b/slurm/8_0_log.out Power= \n"
)
SCONTROL = {
    "requeue, at once": _REQUEUED.format(
        state="COMPLETING", reason="None", run="00:00:00", end="2026-11-22T07:20:19", nodes="node[1-2]"
    ),
    "requeue, waiting": _REQUEUED.format(
        state="PENDING", reason="BeginTime", run="00:00:00", end="2026-11-22T07:20:25", nodes=""
    ),
    "requeue, done": _REQUEUED.format(
        state="COMPLETED", reason="None", run="00:00:01", end="2026-11-22T07:15:26", nodes="node[1-2]"
    ),
    "drained": _REQUEUED.format(
        state="PENDING",
        reason="Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
        run="00:00:00",
        end="Unknown",
        nodes="",
    ),
}

ERRORS = {
    "raise": """\
run runs/imdb-smoke on slurm_cpu_2x2
srun: error: node2: task 3: Exited with exit code 1
srun: launch/slurm: _step_signal: Terminating StepId=3.0
slurmstepd-node1: error: *** STEP 3.0 ON node1 CANCELLED AT 2026-11-22T07:14:04 ***
srun: error: node2: task 2: Terminated
srun: error: node1: tasks 0-1: Terminated
srun: Force Terminated StepId=3.0
""",
    "kill": """\
run runs/imdb-smoke on slurm_cpu_2x2
srun: error: node2: task 2: Killed
srun: launch/slurm: _step_signal: Terminating StepId=4.0
slurmstepd-node1: error: *** STEP 4.0 ON node1 CANCELLED AT 2026-11-22T07:14:04 ***
srun: error: node2: task 3: Terminated
srun: error: node1: tasks 0-1: Terminated
srun: Force Terminated StepId=4.0
""",
    "exit 2": """\
recipes/x.yaml:3: training.learning_rate: 'a' is no number
srun: error: node1: task 0: Exited with exit code 2
srun: launch/slurm: _step_signal: Terminating StepId=5.0
slurmstepd-node1: error: *** STEP 5.0 ON node1 CANCELLED AT 2026-11-22T07:14:04 ***
srun: error: node1: task 1: Terminated
srun: error: node2: tasks 2-3: Terminated
srun: Force Terminated StepId=5.0
""",
    "timeout": """\
run runs/imdb-smoke on slurm_cpu_2x2
slurmstepd-node1: error: *** JOB 6 ON node1 CANCELLED AT 2026-11-22T07:21:10 DUE TO TIME LIMIT ***
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: got SIGCONT
srun: forcing job termination
srun: error: node2: tasks 2-3: Terminated
srun: launch/slurm: _step_signal: Terminating StepId=6.0
srun: error: node1: tasks 0-1: Terminated
""",
    "cancel": """\
run runs/imdb-smoke on slurm_cpu_2x2
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: got SIGCONT
slurmstepd-node1: error: *** STEP 7.0 ON node1 CANCELLED AT 2026-11-22T07:14:40 ***
slurmstepd-node1: error: *** JOB 7 ON node1 CANCELLED AT 2026-11-22T07:14:40 ***
srun: forcing job termination
srun: error: node2: tasks 2-3: Terminated
srun: launch/slurm: _step_signal: Terminating StepId=7.0
srun: error: node1: tasks 0-1: Terminated
""",
    "requeue": """\
run runs/imdb-smoke on slurm_cpu_2x2
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
slurmstepd-node1: error: *** JOB 8 ON node1 CANCELLED AT 2026-11-22T07:15:19 DUE TO JOB REQUEUE ***
slurmstepd-node1: error: *** STEP 8.0 ON node1 CANCELLED AT 2026-11-22T07:15:19 DUE TO JOB REQUEUE ***
srun: got SIGCONT
srun: forcing job termination
srun: error: node2: tasks 2-3: Terminated
srun: launch/slurm: _step_signal: Terminating StepId=8.0
srun: error: node1: tasks 0-1: Terminated
""",
    "memory": """\
run runs/imdb-smoke on slurm_cpu_2x2
slurmstepd-node1: error: Detected 1 oom-kill event(s) in StepId=9.0. Some of your processes may have been killed by \
the cgroup out-of-memory handler.
srun: error: node1: task 1: Out Of Memory
srun: launch/slurm: _step_signal: Terminating StepId=9.0
srun: error: node2: tasks 2-3: Terminated
""",
}
"""The first task's error file. ``memory`` is put together from single lines that such a job has left."""


def commands(folder: Path, **scripts: str) -> Path:
    """Write commands that say again what the real ones said: shell after ``#!/bin/sh``, by name; others go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def says(text: str) -> str:
    """Return shell that prints ``text``."""
    return f"cat <<'END'\n{text}END"
