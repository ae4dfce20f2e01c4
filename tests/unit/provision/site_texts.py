"""What Slurm's commands print: captured from slurm/local_cluster (22.05), and as a newer site prints it (23.11)."""

from finelaunch.provision.site import (
    Site,
    parse_associations,
    parse_config,
    parse_partitions,
    parse_qos,
    parse_sinfo,
)

LOCAL_CONFIG = """\
Configuration data as of 2026-11-22T07:14:47
AccountingStorageEnforce = none
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = socket=/var/lib/localslurm/munge/munge.socket,cred_expire=5
ClusterName             = localslurm
DefMemPerCPU            = 200
GresTypes               = gpu
JobRequeue              = 1
KillWait                = 5 sec
OverTimeLimit           = 0 min
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SelectType              = select/cons_tres
SelectTypeParameters    = CR_CORE_MEMORY
SlurmctldHost[0]        = vm(10.231.0.1)
SlurmctldParameters     = preempt_send_user_signal
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at vm is UP
"""
LOCAL_PARTITIONS = """\
PartitionName=debug AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A \
DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime=20 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED \
MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=node[1-2] PriorityJobFactor=1 PriorityTier=1 RootOnly=NO ReqResv=NO \
OverSubscribe=NO OverTimeLimit=NONE PreemptMode=REQUEUE State=UP TotalCPUs=8 TotalNodes=2 SelectTypeParameters=NONE \
JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED TRES=cpu=8,mem=8000M,node=2,billing=8,gres/gpu=4
PartitionName=high AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A \
DefaultTime=00:10:00 GraceTime=0 MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=node[1-2] OverTimeLimit=NONE \
PreemptMode=OFF State=UP TotalCPUs=8 TotalNodes=2 SelectTypeParameters=NONE DefMemPerNode=UNLIMITED
"""
LOCAL = Site(
    config=parse_config(LOCAL_CONFIG),
    partitions=parse_partitions(LOCAL_PARTITIONS),
    groups=parse_sinfo("debug*|gpu:2|4|4000|2|(null)\nhigh|gpu:2|4|4000|2|(null)\n"),
    associations=parse_associations("root||normal|\n"),
    default_account="root",
)

CAMPUS_CONFIG = """\
AuthInfo                = (null)
ClusterName             = campus
DefMemPerNode           = UNLIMITED
GresTypes               = gpu
JobRequeue              = 0
KillWait                = 30 sec
OverTimeLimit           = 5 min
PreemptMode             = GANG,SUSPEND
PreemptParameters       = send_user_signal,youngest_first
PreemptType             = preempt/qos
SelectTypeParameters    = CR_CPU_MEMORY
SlurmctldParameters     = enable_configless
SLURM_VERSION           = 23.11.4
"""
# As scontrol prints it without -o.
CAMPUS_PARTITIONS = """\
PartitionName=cpu
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default=YES QoS=N/A
   MaxNodes=UNLIMITED MaxTime=3-00:00:00 MinNodes=0
   Nodes=c[001-120]
   OverTimeLimit=NONE PreemptMode=OFF
   State=UP TotalCPUs=15360 TotalNodes=120 SelectTypeParameters=NONE

PartitionName=gpu-old
   AllowAccounts=physics AllowQos=ALL
   AllocNodes=ALL Default=NO QoS=N/A
   MaxNodes=4 MaxTime=1-00:00:00
   Nodes=v[1-4]
   OverTimeLimit=NONE PreemptMode=OFF
   State=UP TotalNodes=4 SelectTypeParameters=NONE

PartitionName=gpu
   AllowAccounts=nlp,vision AllowQos=gpu_short,gpu_long
   AllocNodes=ALL Default=NO QoS=N/A
   GraceTime=0 MaxNodes=2 MaxTime=02:00:00
   Nodes=g[01-08]
   OverTimeLimit=NONE PreemptMode=REQUEUE
   State=UP TotalNodes=8 SelectTypeParameters=NONE
"""
CAMPUS = Site(
    config=parse_config(CAMPUS_CONFIG),
    partitions=parse_partitions(CAMPUS_PARTITIONS),
    groups=parse_sinfo(
        "cpu*|(null)|128|515000+|120|(null)\n"
        "gpu-old|gpu:v100:2(S:0-1)|40|192000|4|volta\n"
        "gpu|gpu:a100:4(S:0-3),nvme:1|64|1031000|6|ampere,nvlink\n"
        "gpu|gpu:a100:4(S:0-3)|64|515000|2|ampere\n"
    ),
    associations=parse_associations("nlp||gpu_long,normal|normal\nvision||gpu_short|gpu_short\n"),
    default_account="nlp",
    qos_max_wall=parse_qos("normal|\ngpu_short|02:00:00\ngpu_long|1-00:00:00\n"),
)
SILENT = Site(silent={"sacctmgr": "sacctmgr is not installed here"})
