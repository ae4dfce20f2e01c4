# What start.sh and stop.sh share: the knobs with their defaults, names and ports, and how a process is known again.
set -euo pipefail

LSL_DIR=${LSL_DIR:-/var/lib/localslurm} # all configuration, state, logs and pid files
LSL_INSTALL=${LSL_INSTALL:-1}           # 1: apt-get install what is missing
# What each node claims to have, whatever this machine has. GPUs are devices that exist and do nothing.
LSL_NODES=${LSL_NODES:-2} LSL_CPUS=${LSL_CPUS:-4} LSL_MEM=${LSL_MEM:-4000} LSL_GPUS=${LSL_GPUS:-2}
LSL_ACCT=${LSL_ACCT:-1}                 # 1: slurmdbd on MariaDB, so that sacct answers. 0: none, as on bare clusters
LSL_USER_SIGNAL=${LSL_USER_SIGNAL:-1}   # 1: a job that is preempted gets its own --signal. 0: only SIGTERM
LSL_CRED_EXPIRE=${LSL_CRED_EXPIRE:-5}   # seconds that a requeued job waits; Slurm's default is 120
LSL_KILL_WAIT=${LSL_KILL_WAIT:-5}       # seconds from SIGTERM to SIGKILL; Slurm's default is 30
LSL_MIN_JOB_AGE=${LSL_MIN_JOB_AGE:-600} # seconds that scontrol remembers a finished job; Slurm's default is 300
LSL_NODE_TIMEOUT=${LSL_NODE_TIMEOUT:-60} # seconds until a node that is silent is DOWN; Slurm's default is 300
LSL_PROCTRACK=${LSL_PROCTRACK:-linuxproc} # linuxproc: signals reach all processes of a step. cgroup: only its tasks
LSL_LIMIT_MEMORY=${LSL_LIMIT_MEMORY:-0} # 1: a step that takes more memory than it asked for is killed (task/cgroup)
LSL_PRIVATE_TMP=${LSL_PRIVATE_TMP:-0}   # 1: each node has a /tmp of its own
LSL_FORBID_SCONTROL=${LSL_FORBID_SCONTROL:-0} # 1: on the nodes scontrol answers "Access/permission denied"
LSL_NET=${LSL_NET:-auto}                # netns: each node its own network and host name. ports: all of them this host's

CLUSTER=localslurm BRIDGE=lslbr0 SUBNET=10.231.0
CTLD_PORT=16817 DBD_PORT=16819 NODE_PORT=16820 DB_PORT=13306
MUNGE_SOCKET=$LSL_DIR/munge/munge.socket DB_SOCKET=$LSL_DIR/run/mariadb.sock
SETTINGS=$LSL_DIR/run/settings
export SLURM_CONF=$LSL_DIR/slurm.conf LC_ALL=C

say() { printf '[localslurm] %s\n' "$*" >&2; }
die() { say "ERROR: $*"; exit 1; }
cannot() { say "cannot run here: $*"; exit 3; } # the machine lacks something; tests skip with this sentence

started_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; } # a number that tells two processes of one pid apart
pid_of() { # pid_of NAME: the pid recorded for NAME, if that is still the process that was started
  local pid start
  read -r pid start 2>/dev/null <"$LSL_DIR/run/$1.pid" && [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ] && echo "$pid"
}
alive() { pid_of "$1" >/dev/null; }
namespaces() { ls /run/netns 2>/dev/null | grep '^lsl-node' || true; }

[ "$(id -u)" = 0 ] || cannot "a cluster of its own needs root"
command -v apt-get >/dev/null || cannot "there is no apt-get; this is for Debian and Ubuntu"
mkdir -p "$LSL_DIR"/{run,log,state,spool,dev}
chmod 755 "$LSL_DIR" "$LSL_DIR"/{run,log,spool,dev}
