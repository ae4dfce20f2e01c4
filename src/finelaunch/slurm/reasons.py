"""Why a job waits: Slurm's word for it, and what it means."""

import re

_WORDS = {
    "Resources": "it waits until enough nodes are free",
    "Priority": "jobs of higher priority come first",
    "Dependency": "it waits for another job to end",
    "DependencyNeverSatisfied": "the job that it waits for ended in another way, so it will never start: cancel it",
    "BeginTime": "its time to begin has not come",
    "JobHeldUser": "it is held: scontrol release JOB lets it start",
    "JobHeldAdmin": "an administrator holds it",
    "JobHoldMaxRequeue": "it was requeued as often as the site allows and is held: scontrol release JOB",
    "PartitionTimeLimit": "its time limit is above the partition's, so it will not start: cancel it, lower time_limit",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives to one job",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition starts no jobs now",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "NodeDown": "a node that it needs is down",
    "Reservation": "it waits for its reservation",
    "Licenses": "it waits for a licence",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "QOSMaxJobsPerUserLimit": "as many of your jobs run as the QOS allows at once",
    "MaxJobsPerAccount": "as many jobs of the account run as are allowed at once",
}
"""Why a job waits, in words, by Slurm's own."""

_BEGINNINGS = {
    "QOSMaxWall": "its time limit is above the QOS's",
    "QOSMax": "it asks for more than the QOS gives to one user or job at once",
    "QOSGrp": "the QOS is used up by all its users together",
    "QOS": "a limit of the QOS is reached",
    "AssocGrp": "the account has used up what it may use at once or in all",
    "AssocMax": "it asks for more than the account gives to one user or job",
    "Assoc": "a limit of the account is reached",
    "MaxCpuPerAccount": "the account uses as many cores as it may at once",
    "Nodes required for job are DOWN": "nodes that it needs are down, drained or reserved",
}
"""The same for reasons of which there are many."""


def reason_text(reason: str, was_requeued: bool = False) -> str:
    """Return what a reason of Slurm means for whoever waits; empty where it is none of the common ones."""
    if reason == "BeginTime" and was_requeued:
        return "Slurm lets a requeued job wait a moment"
    near = (text for start, text in _BEGINNINGS.items() if reason.startswith(start))
    return _WORDS.get(re.split(r"[,\s]", reason)[0]) or next(near, "")
