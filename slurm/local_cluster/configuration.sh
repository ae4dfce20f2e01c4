# The configuration files of the cluster, from the knobs. Each function prints one. Sourced by start.sh.

slurm_conf() { # slurm_conf CONTROLLER_ADDRESS
  local node line
  cat <<C
ClusterName=$CLUSTER
SlurmctldHost=$(hostname -s)($1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$CTLD_PORT
SlurmdPort=$NODE_PORT
AuthType=auth/munge
# cred_expire is also the time for which a requeued job waits (Reason=BeginTime)
AuthInfo=socket=$MUNGE_SOCKET,cred_expire=$LSL_CRED_EXPIRE
StateSaveLocation=$LSL_DIR/state
SlurmdSpoolDir=$LSL_DIR/spool/%n
SlurmctldPidFile=$LSL_DIR/run/slurmctld.own.pid
SlurmdPidFile=$LSL_DIR/run/slurmd.%n.own.pid
SlurmctldLogFile=$LSL_DIR/log/slurmctld.log
SlurmdLogFile=$LSL_DIR/log/slurmd.%n.log
ProctrackType=proctrack/$LSL_PROCTRACK
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# nodes may claim more CPUs and memory than this machine has
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=$LSL_NODE_TIMEOUT
# fast scheduling: tests should not sit still
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=60
KillWait=$LSL_KILL_WAIT
MinJobAge=$LSL_MIN_JOB_AGE
InactiveLimit=0
CompleteWait=0
# a job that names no memory would otherwise take all of a node's
DefMemPerCPU=200
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
C
  if [ "$LSL_LIMIT_MEMORY" = 1 ]; then echo "TaskPlugin=task/cgroup"; fi
  if [ "$LSL_USER_SIGNAL" = 1 ]; then # the option has another name in later versions; the controller knows its own
    if grep -q preempt_send_user_signal "$(command -v slurmctld)"; then
      echo "SlurmctldParameters=preempt_send_user_signal"
    else echo "PreemptParameters=send_user_signal"; fi
  fi
  if [ "$LSL_ACCT" = 1 ]; then
    # AccountingStoragePass is no password: with munge it is the socket, since AuthInfo is not used towards slurmdbd
    cat <<C
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=$DBD_PORT
AccountingStoragePass=$MUNGE_SOCKET
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
C
  else
    echo "AccountingStorageType=accounting_storage/none"
    echo "JobAcctGatherType=jobacct_gather/none"
  fi
  for node in $(seq 1 "$LSL_NODES"); do
    line="NodeName=node$node CPUs=$LSL_CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$LSL_CPUS ThreadsPerCore=1"
    line+=" RealMemory=$LSL_MEM State=UNKNOWN"
    if [ "$LSL_GPUS" -gt 0 ]; then line+=" Gres=gpu:$LSL_GPUS"; fi
    if [ "$LSL_NET" = netns ]; then line+=" NodeAddr=$SUBNET.$((10 + node)) NodeHostname=node$node"
    else line+=" NodeAddr=127.0.0.1 NodeHostname=$(hostname -s) Port=$((NODE_PORT + node))"; fi
    echo "$line"
  done
  # a job in high preempts one in debug, which gets 20 s after its signal
  line="Nodes=node[1-$LSL_NODES] MaxTime=INFINITE DefaultTime=10 State=UP OverSubscribe=NO"
  echo "PartitionName=debug $line Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20"
  echo "PartitionName=high $line Default=NO PriorityTier=10 PreemptMode=OFF"
}

gres_conf() {
  if [ "$LSL_GPUS" -gt 0 ]; then echo "Name=gpu File=$LSL_DIR/dev/nvidia[0-$((LSL_GPUS - 1))]"; fi
}

cgroup_conf() {
  if [ -d /sys/fs/cgroup/freezer ]; then echo "CgroupPlugin=cgroup/v1"
  else printf 'CgroupPlugin=autodetect\nIgnoreSystemd=yes\n'; fi
  echo "ConstrainRAMSpace=$([ "$LSL_LIMIT_MEMORY" = 1 ] && echo yes || echo no)"
}

slurmdbd_conf() { # slurmdbd_conf PASSWORD
  cat <<C
AuthType=auth/munge
AuthInfo=socket=$MUNGE_SOCKET
DbdHost=localhost
DbdPort=$DBD_PORT
SlurmUser=root
PidFile=$LSL_DIR/run/slurmdbd.own.pid
LogFile=$LSL_DIR/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DB_PORT
StorageUser=slurm
StoragePass=$1
StorageLoc=slurm_acct_db
C
}
