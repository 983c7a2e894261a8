#!/usr/bin/env bash
# A Slurm cluster of this one machine, with one pretended GPU, for tests. Needs root and Debian's slurmctld, slurmd,
# slurm-client and munge.
#   cluster.sh up FOLDER           write the configuration into FOLDER and start; /etc/slurm links to it
#   cluster.sh restart FOLDER      stop the controller and start it again; jobs go on
#   cluster.sh down FOLDER         stop what up started
set -euo pipefail
# Debian's daemons lie there; not every shell looks there.
PATH="$PATH:/usr/sbin:/sbin"

COMMAND="${1:?up, restart or down}"
FOLDER="$(realpath -m "${2:?a folder}")"
# Elsewhere only where this file itself is tested.
PLACE="${NUCLASS_TEST_SLURM_PLACE:-/etc/slurm}"
CLUSTER=nuclass-tests
NODE="$(hostname -s)"

# Snakemake's process inside a job drops SLURM_CONF, so the configuration must lie where Slurm looks by itself.
# A link may lead to a real cluster's file as well: what counts is the cluster it names.
claim() {
    local file
    for file in slurm.conf gres.conf; do
        if [ -e "$PLACE/$file" ] && ! grep -Eqx "(# )?ClusterName=$CLUSTER" "$PLACE/$file"; then
            echo "$PLACE/$file is there already: this machine belongs to a real cluster. Nothing is changed." >&2
            exit 2
        fi
    done
    install -d "$PLACE"
    for file in slurm.conf gres.conf; do
        ln -sfn "$FOLDER/$file" "$PLACE/$file"
    done
}

configure() {
    local cpus memory
    cpus="$(($(nproc) > 8 ? $(nproc) : 8))"
    memory=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024 - 512))
    cat >"$FOLDER/slurm.conf" <<CONF
ClusterName=$CLUSTER
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
# No control groups: the tests also run in containers.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
# Memory limits by counting.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill,NoShared
AccountingStorageType=accounting_storage/none
MinJobAge=86400
KillWait=5
ReturnToService=2
GresTypes=gpu
# Eight CPUs at least: jobs of a small machine then go side by side, and none is refused for its threads.
SlurmdParameters=config_overrides
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory Gres=gpu:pretended:1
PartitionName=cpu Nodes=$NODE Default=YES MaxTime=1-00:00:00
PartitionName=gpu Nodes=$NODE MaxTime=1-00:00:00
CONF
    echo "# ClusterName=$CLUSTER
AutoDetect=off
NodeName=$NODE Name=gpu Type=pretended File=/dev/null" >"$FOLDER/gres.conf"
}

start_munge() {
    if munge -n >/dev/null 2>&1; then return; fi
    install -d -o munge -g munge -m 0755 /run/munge
    runuser -u munge -- munged
    touch "$FOLDER/munge.ours"
}

wait_until_idle() {
    local _
    for _ in $(seq 120); do
        if [ "$(sinfo -h -o %T 2>/dev/null | sort -u)" = "${1:-idle}" ]; then return; fi
        sleep 0.25
    done
    echo "The cluster does not come up. Its logs: $FOLDER/slurmctld.log, $FOLDER/slurmd.log" >&2
    exit 1
}

stop() {
    local pid _
    if [ ! -s "$FOLDER/$1.pid" ]; then return; fi
    pid="$(cat "$FOLDER/$1.pid")"
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 80); do
        if ! kill -0 "$pid" 2>/dev/null; then break; fi
        sleep 0.25
    done
    rm -f "$FOLDER/$1.pid"
}

case "$COMMAND" in
up)
    claim
    mkdir -p "$FOLDER/state" "$FOLDER/spool"
    configure
    start_munge
    slurmctld
    slurmd -N "$NODE"
    wait_until_idle
    ;;
restart)
    stop slurmctld
    slurmctld
    ;;
down)
    # Jobs outlive their daemon.
    jobs="$(squeue -h -o %A 2>/dev/null || true)"
    if [ -n "$jobs" ]; then
        # shellcheck disable=SC2086
        scancel $jobs || true
        sleep 5
    fi
    stop slurmd
    stop slurmctld
    if [ -e "$FOLDER/munge.ours" ]; then kill "$(cat /run/munge/munged.pid)" || true; fi
    for file in slurm.conf gres.conf; do
        if [ "$(readlink "$PLACE/$file")" = "$FOLDER/$file" ]; then rm "$PLACE/$file"; fi
    done
    ;;
*)
    echo "up, restart or down, not '$COMMAND'" >&2
    exit 2
    ;;
esac
