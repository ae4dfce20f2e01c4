#!/usr/bin/env bash
# Stops what start.sh started: by recorded pid and its start time, never by name.
#
#   stop.sh                     stop; the state stays, a later start carries on
#   stop.sh --keep-accounting   stop controller and nodes only, for a start with other settings
#   stop.sh --purge             delete $LSL_DIR too
source "$(dirname "$(readlink -f "$0")")/settings.sh"
case "${1:-}" in '' | --keep-accounting | --purge) ;; *) die "unknown option $1" ;; esac
exec 9>"$LSL_DIR/run/.lock"
[ -n "${LSL_LOCKED:-}" ] || flock -w 60 9 || die "another start or stop is under way"

end() { # end NAME...: SIGTERM to all, SIGKILL after 20 s to what is left
  local name pid deadline=$((SECONDS + 20))
  for name in "$@"; do if pid=$(pid_of "$name"); then kill "$pid" || true; fi; done
  for name in "$@"; do
    while alive "$name" && [ $SECONDS -lt $deadline ]; do sleep 0.1; done
    if pid=$(pid_of "$name"); then kill -9 "$pid" || true; fi
    rm -f "$LSL_DIR/run/$name.pid"
  done
}

if alive slurmctld; then # jobs first, so that no step outlives its slurmd
  timeout 10 scancel --quiet --full $(timeout 10 squeue -h -o %A | sort -u) 2>/dev/null || true
  deadline=$((SECONDS + LSL_KILL_WAIT + 8))
  while [ -n "$(timeout 10 squeue -h -t R,CG,S 2>/dev/null)" ] && [ $SECONDS -lt $deadline ]; do sleep 0.2; done
fi
nodes=()
for file in "$LSL_DIR"/run/slurmd-*.pid; do if [ -e "$file" ]; then nodes+=("$(basename "$file" .pid)"); fi; done
end "${nodes[@]}" slurmctld
for namespace in $(namespaces); do # what still runs in the networks of the nodes belongs to their jobs
  ip netns pids "$namespace" | xargs -r kill -9 || true
  ip link del "lslv${namespace#lsl-node}" 2>/dev/null || true # its other end would outlive the name for a moment
  ip netns del "$namespace"
done
if ip link show "$BRIDGE" >/dev/null 2>&1; then ip link del "$BRIDGE"; fi
rm -f "$SETTINGS"
if [ "${1:-}" != --keep-accounting ]; then
  end slurmdbd
  end mariadbd munged
  hosts=$(sed '/# BEGIN localslurm/,/# END localslurm/d' /etc/hosts)
  printf '%s\n' "$hosts" >/etc/hosts # not sed -i: the file may be mounted
  for file in slurm.conf gres.conf cgroup.conf; do
    if [ "$(readlink "/etc/slurm/$file" || true)" = "$LSL_DIR/$file" ]; then rm "/etc/slurm/$file"; fi
  done
fi
if [ "${1:-}" = --purge ]; then rm -rf "$LSL_DIR"; fi
say "stopped"
