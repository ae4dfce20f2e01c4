#!/usr/bin/env bash
# A real Slurm of several nodes on one Debian or Ubuntu machine: as root, without systemd.
#
#   start.sh             start, or bring back what has died; a cluster that runs is left as it is
#   start.sh --restart   the same, with the settings given now: one that runs with others is stopped first
#   LSL_ACCT=0 start.sh  settings are variables: settings.sh lists them
#
# Each node is a slurmd in a network, host name and mount namespace of its own, so that what works on one host only
# (MASTER_ADDR=localhost, a name that does not resolve) fails here as it does on a cluster. Where namespaces are not
# allowed, as in a plain container, the nodes are ports of this host.
here=$(dirname "$(readlink -f "$0")")
source "$here/settings.sh"
source "$here/configuration.sh"
case "${1:-}" in '' | --restart) ;; *) die "unknown option $1" ;; esac
exec 9>"$LSL_DIR/run/.lock"
flock -w 120 9 || die "another start or stop is under way"

install_packages() {
  local need=()
  command -v munged >/dev/null || need+=(munge)
  command -v slurmctld >/dev/null || need+=(slurmctld)
  command -v slurmd >/dev/null || need+=(slurmd)
  command -v sbatch >/dev/null || need+=(slurm-client)
  command -v ip >/dev/null || need+=(iproute2)
  if [ "$LSL_ACCT" = 1 ]; then
    command -v slurmdbd >/dev/null || need+=(slurmdbd)
    command -v mariadbd >/dev/null || need+=(mariadb-server)
    ls /usr/lib/*/slurm-wlm/accounting_storage_mysql.so >/dev/null 2>&1 || need+=(slurm-wlm-mysql-plugin)
  fi
  if [ ${#need[@]} = 0 ]; then return; fi
  [ "$LSL_INSTALL" = 1 ] || cannot "missing packages: ${need[*]} (LSL_INSTALL=1 installs them)"
  say "installing ${need[*]}"
  local policy=/usr/sbin/policy-rc.d get="apt-get install -y -qq --no-install-recommends ${need[*]}" ok=0
  # the packages' own services must not start
  if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; trap "rm -f $policy" EXIT; fi
  export DEBIAN_FRONTEND=noninteractive
  { $get || { apt-get update -qq && $get; }; } >"$LSL_DIR/log/apt.log" 2>&1 9>&- || ok=$?
  if [ -n "$(trap -p EXIT)" ]; then rm -f $policy; trap - EXIT; fi
  [ $ok = 0 ] || cannot "apt-get could not install ${need[*]}: $(grep -m1 '^E:' "$LSL_DIR/log/apt.log" || true)"
}

launch() { # launch NAME COMMAND...: in the background, in a session of its own, unless it runs
  local name=$1 pid fd
  shift
  if alive "$name"; then return; fi
  ( # without what this shell has open: a daemon would keep the locks of whoever calls this script
    for fd in $(ls /proc/self/fd); do if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi; done
    exec setsid "$@" </dev/null >>"$LSL_DIR/log/$name.out" 2>&1
  ) &
  pid=$!
  sleep 0.05
  echo "$pid $(started_at "$pid")" >"$LSL_DIR/run/$name.pid"
}

wait_for() { # wait_for SECONDS NAME COMMAND...
  local deadline=$((SECONDS + $1)) name=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || die "$name did not come up; the logs are in $LSL_DIR/log"
    sleep 0.1
  done
}

choose_network() { # sets LSL_NET to netns or ports
  if [ "$LSL_NET" = auto ]; then
    LSL_NET=netns
    unshare --net --mount --uts true 2>/dev/null && { [ -n "$(namespaces)" ] || ip link add "$BRIDGE" type bridge 2>/dev/null; } || {
      LSL_NET=ports
      say "no namespaces are allowed here: the nodes are ports of this host and share its name"
    }
  fi
  if [ "$LSL_NET" = ports ] && [ "$LSL_PRIVATE_TMP$LSL_FORBID_SCONTROL" != 00 ]; then
    cannot "a /tmp or an scontrol of each node's own needs mount namespaces"
  fi
}

check_cgroups() {
  local controller
  if [ "$LSL_PROCTRACK$LSL_LIMIT_MEMORY" = linuxproc0 ]; then return; fi
  for controller in freezer memory; do
    if [ -d "/sys/fs/cgroup/$controller" ]; then
      mkdir -p "/sys/fs/cgroup/$controller/lsl-try" 2>/dev/null && rmdir "/sys/fs/cgroup/$controller/lsl-try" \
        || cannot "cgroups may not be written"
    else
      [ -w /sys/fs/cgroup/cgroup.subtree_control ] || cannot "cgroups may not be written"
    fi
  done
}

settings() { # the knobs that a running cluster keeps, as lines
  local name
  for name in NODES CPUS MEM GPUS ACCT USER_SIGNAL CRED_EXPIRE KILL_WAIT MIN_JOB_AGE NODE_TIMEOUT PROCTRACK \
    LIMIT_MEMORY PRIVATE_TMP FORBID_SCONTROL NET; do
    name=LSL_$name
    echo "$name=${!name}"
  done
}

start_munge() { # with a socket and a key of its own; a munge of the system is left alone
  local dir=$LSL_DIR/munge
  if ! alive munged; then
    mkdir -p "$dir"
    [ -s "$dir/munge.key" ] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    rm -f "$MUNGE_SOCKET" "$MUNGE_SOCKET.lock"
    chown -R munge:munge "$dir"
    chmod 755 "$dir"
    launch munged setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --socket="$MUNGE_SOCKET" \
      --key-file="$dir/munge.key" --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munged.seed"
  fi
  wait_for 15 munged sh -c "munge -n -S '$MUNGE_SOCKET' | unmunge -S '$MUNGE_SOCKET'"
}

make_network() {
  local node namespace address
  if [ "$LSL_NET" = netns ]; then
    ip link show "$BRIDGE" >/dev/null 2>&1 || ip link add "$BRIDGE" type bridge
    ip addr replace "$SUBNET.1/24" dev "$BRIDGE"
    ip link set "$BRIDGE" up
    for node in $(seq 1 "$LSL_NODES"); do # each line may find its work done
      namespace=lsl-node$node
      [ -e "/run/netns/$namespace" ] || ip netns add "$namespace"
      ip link show "lslv$node" >/dev/null 2>&1 || ip link add "lslv$node" type veth peer name eth0 netns "$namespace"
      ip link set "lslv$node" master "$BRIDGE" up
      ip -n "$namespace" addr replace "$SUBNET.$((10 + node))/24" dev eth0
      ip -n "$namespace" link set eth0 up
      ip -n "$namespace" link set lo up
      ip -n "$namespace" route replace default via "$SUBNET.1"
    done
  fi
  { # the names of the nodes, in a block that stop.sh takes out again
    sed '/# BEGIN localslurm/,/# END localslurm/d' /etc/hosts
    echo '# BEGIN localslurm'
    for node in $(seq 1 "$LSL_NODES"); do
      if [ "$LSL_NET" = netns ]; then address=$SUBNET.$((10 + node)); else address=127.0.0.1; fi
      echo "$address node$node"
    done
    echo '# END localslurm'
  } >"$LSL_DIR/run/hosts"
  cmp -s "$LSL_DIR/run/hosts" /etc/hosts || cat "$LSL_DIR/run/hosts" >/etc/hosts
}

write_configuration() {
  local gpu file
  for gpu in $(seq 0 $((LSL_GPUS - 1))); do
    file=$LSL_DIR/dev/nvidia$gpu # without a device Slurm still counts, but leaves CUDA_VISIBLE_DEVICES empty
    [ -e "$file" ] || { mknod "$file" c 1 3 && chmod 666 "$file"; } 2>/dev/null || touch "$file"
  done
  slurm_conf "$([ "$LSL_NET" = netns ] && echo "$SUBNET.1" || echo 127.0.0.1)" >"$LSL_DIR/slurm.conf"
  gres_conf >"$LSL_DIR/gres.conf"
  cgroup_conf >"$LSL_DIR/cgroup.conf"
  mkdir -p /etc/slurm
  for file in slurm.conf gres.conf cgroup.conf; do # so that jobs of a clean environment find it too
    if [ -e "/etc/slurm/$file" ] && [ ! -L "/etc/slurm/$file" ]; then cannot "/etc/slurm/$file belongs to another cluster"; fi
    ln -sfn "$LSL_DIR/$file" "/etc/slurm/$file"
  done
}

start_accounting() {
  local password
  [ -s "$LSL_DIR/run/dbpass" ] || (umask 077 && head -c 18 /dev/urandom | base64 | tr -d '/+=' >"$LSL_DIR/run/dbpass")
  password=$(cat "$LSL_DIR/run/dbpass")
  if [ ! -d "$LSL_DIR/db/mysql" ]; then
    mkdir -p "$LSL_DIR/db"
    mariadb-install-db --no-defaults --datadir="$LSL_DIR/db" --user=root --auth-root-authentication-method=socket \
      --skip-test-db >"$LSL_DIR/log/mariadb-install.out" 2>&1 || die "mariadb-install-db failed; see $LSL_DIR/log"
  fi
  if ! alive mariadbd; then
    launch mariadbd mariadbd --no-defaults --user=root --datadir="$LSL_DIR/db" --socket="$DB_SOCKET" --port=$DB_PORT \
      --bind-address=127.0.0.1 --pid-file="$LSL_DIR/run/mariadbd.own.pid" --innodb-buffer-pool-size=64M \
      --innodb-log-file-size=32M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --skip-log-bin
    wait_for 60 mariadbd mariadb-admin --no-defaults -S "$DB_SOCKET" ping
    mariadb --no-defaults -S "$DB_SOCKET" -e "CREATE DATABASE IF NOT EXISTS slurm_acct_db;
      CREATE OR REPLACE USER 'slurm'@'localhost' IDENTIFIED BY '$password';
      CREATE OR REPLACE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '$password';
      GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost'; GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';"
  fi
  (umask 077 && slurmdbd_conf "$password" >"$LSL_DIR/slurmdbd.conf")
  launch slurmdbd slurmdbd -D # it reads slurmdbd.conf beside $SLURM_CONF
  wait_for 60 slurmdbd timeout 5 sacctmgr -n show cluster
  sacctmgr -n -P show cluster format=cluster | grep -x $CLUSTER >/dev/null || sacctmgr -i add cluster $CLUSTER >/dev/null || true
}

start_node() { # start_node NAME
  local inside="hostname $1; mount --bind '$LSL_DIR/resolv.conf' /etc/resolv.conf"
  if [ "$LSL_NET" = ports ]; then launch "slurmd-$1" slurmd -D -N "$1"; return; fi
  if [ "$LSL_PRIVATE_TMP" = 1 ]; then inside+="; mount -t tmpfs -o mode=1777 tmpfs /tmp"; fi
  if [ "$LSL_FORBID_SCONTROL" = 1 ]; then inside+="; mount --bind '$LSL_DIR/scontrol' '$(readlink -f "$(command -v scontrol)")'"; fi
  # All of these exec, so that the recorded pid is slurmd's. Not `ip netns exec`: its new /sys hides the cgroups.
  launch "slurmd-$1" nsenter --net="/run/netns/lsl-$1" unshare --uts --mount --propagation slave \
    sh -c "$inside; exec slurmd -D -N $1"
}

nodes_are_up() { [ "$(timeout 5 sinfo -h -N -p debug -o '%N %t' | grep -cE ' (idle|alloc|mix|comp|plnd)$')" = "$LSL_NODES" ]; } # * is silent
node_reaches_node() { nsenter --net=/run/netns/lsl-node1 timeout 2 bash -c "</dev/tcp/$SUBNET.$((10 + LSL_NODES))/$NODE_PORT"; }

install_packages
choose_network
check_cgroups
if alive slurmctld && ! cmp -s <(settings) "$SETTINGS"; then
  [ "${1:-}" = --restart ] || die "it runs with other settings ($(diff <(settings) "$SETTINGS" 2>&1 | grep '^>' | cut -c3- | xargs)); use --restart"
  LSL_LOCKED=1 "$here/stop.sh" --keep-accounting 9>&-
fi
settings >"$SETTINGS"
start_munge
make_network
write_configuration
if [ "$LSL_ACCT" = 1 ]; then start_accounting; fi
launch slurmctld slurmctld -D
wait_for 30 slurmctld sh -c "timeout 5 scontrol ping | grep -q UP"
# A node cannot ask this machine's name server: one that refuses at once spares gloo some 10 s for each name.
printf 'nameserver 127.0.0.1\noptions timeout:1 attempts:1\n' >"$LSL_DIR/resolv.conf"
printf '#!/bin/sh\necho "scontrol: error: Access/permission denied" >&2\nexit 1\n' >"$LSL_DIR/scontrol"
chmod 755 "$LSL_DIR/scontrol"
for node in $(seq 1 "$LSL_NODES"); do
  mkdir -p "$LSL_DIR/spool/node$node"
  start_node "node$node"
  # one that was left DOWN by a hard stop comes back
  if sinfo -h -n "node$node" -o %T | grep -iE 'down|drain' >/dev/null; then scontrol update nodename="node$node" state=resume 2>/dev/null || true; fi
done
wait_for 40 "a node" nodes_are_up
if [ "$LSL_NET" = netns ] && ! node_reaches_node; then
  die "nodes do not reach each other: a firewall filters bridges (net.bridge.bridge-nf-call-iptables); LSL_NET=ports does without"
fi
say "up: $(sinfo -h -p debug -o '%D nodes %N, state %T, %c CPUs, %m MB, %G'); export SLURM_CONF=$SLURM_CONF"
