#!/usr/bin/env bash
# A real Slurm of one node on this machine, for the tests of queued runs; needs root and Debian's packages:
#     apt-get install -y --no-install-recommends slurm-wlm munge
#   slurm_one_node.sh start FOLDER     everything it writes is in FOLDER; SLURM_CONF=FOLDER/slurm.conf finds it
#   slurm_one_node.sh stop FOLDER
set -euo pipefail
at=$2
export SLURM_CONF=$at/slurm.conf
if [[ "$1" == stop ]]; then
    scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null || true
    scancel --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 60); do
        [[ -n "$(squeue --noheader 2>/dev/null)" ]] || break
        sleep 0.25
    done
    for signal in TERM KILL; do
        for name in slurmctld slurmd munged; do
            [[ ! -f "$at/$name.pid" ]] || kill "-$signal" "$(cat "$at/$name.pid")" 2>/dev/null || true
        done
        sleep 1
    done
    exit 0
fi
# munge with a key and a socket of its own: another one on this machine is left alone
mkdir -p "$at/state" "$at/spool" "$at/munge"
chmod 711 "$at"
chmod 700 "$at/munge"
head -c 1024 /dev/urandom >"$at/munge/key"
chmod 600 "$at/munge/key"
munged --force --key-file="$at/munge/key" --socket="$at/munge.socket" --pid-file="$at/munged.pid" \
    --log-file="$at/munge/log" --seed-file="$at/munge/seed" 2>/dev/null
port() { # a free one, so that two such Slurms do not meet
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
# cred_expire: a requeued job waits that long before it starts again, 120 s where nothing is said. MinJobAge: jobs that
# have ended are remembered for half a day. The timeouts are for a machine that is busy with other tests.
cat >"$SLURM_CONF" <<EOF
ClusterName=one
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$(port)
SlurmdPort=$(port)
AuthType=auth/munge
AuthInfo=socket=$at/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool
SlurmctldPidFile=$at/slurmctld.pid
SlurmdPidFile=$at/slurmd.pid
SlurmctldLogFile=$at/slurmctld.log
SlurmdLogFile=$at/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
MinJobAge=43200
MessageTimeout=100
BatchStartTimeout=300
NodeName=$(hostname) NodeAddr=127.0.0.1 CPUs=2 RealMemory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 - 1024)) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld
slurmd
for _ in $(seq 1200); do
    [[ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ]] || exit 0
    sleep 0.25
done
tail -n 5 "$at/slurmctld.log" "$at/slurmd.log" >&2
exit 1
