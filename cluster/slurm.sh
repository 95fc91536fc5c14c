#!/usr/bin/env bash
# A sweep as one Slurm job: starts Ray on the job's nodes, runs the sweep, and leaves nothing behind.
#   sbatch cluster/slurm.sh search_spaces/beauty.yaml --storage /shared/runs
# The storage must be seen by all nodes. Ten minutes' warning before the time limit, a preemption or `scancel` stop the
# sweep resumably; at the time limit the job queues itself again and goes on. Submitting the same line again resumes too.
#SBATCH --job-name=sweep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sweep-%j.log
set -euo pipefail
umask 077

ready_seconds=${SWEEPS_READY_SECONDS:-300}   # how long nodes may take to come up
port=${SWEEPS_RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}   # outside Ray's range for workers, another for every job

if (($# == 0)); then
  echo "usage: sbatch $0 FILE --storage FOLDER [options of sweeps run]" >&2
  exit 2
fi

# Every process of this Ray asks for this token, which no command line shows. It dies with the job.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

trap 'exit 143' TERM INT USR1   # until the sweep has started
on_node() { # node, then a command, in a process of its own; without the CPUs a step has one (Slurm since 22.05)
  exec srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --nodelist="$1" "${@:2}"
}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# By which the others reach the head: its name may stand for a loopback address, and an IPv6 one may come first.
head_ip=$(on_node "$head" bash -c 'hostname --ip-address; hostname --all-ip-addresses' | tr -s ' ' '\n' |
  grep -E '^[0-9]+(\.[0-9]+){3}$' | grep -v '^127\.' | sed -n 1p) || true
if [[ -z $head_ip ]] && ((${#nodes[@]} == 1)); then
  head_ip=127.0.0.1
elif [[ -z $head_ip ]]; then
  echo "error: $head has no IPv4 address that other nodes can reach" >&2
  exit 4
fi
address=$head_ip:$port

ray_pids=()
start_node() { # node, then how `ray start` is to be called; Ray opens its session folders to everyone, so they lie in ours
  local node=$1
  shift
  # A step gets the SIGTERM of `scancel` and of a preemption as the sweep does, which needs its nodes to stop resumably:
  # Ray ends by SIGUSR2 alone, which only this script sends. Names of sockets are made from the folder's: 107 bytes at most.
  # shellcheck disable=SC2016  # expanded on the node
  on_node "$node" bash -c '
    trap : TERM INT
    trap exit USR2
    folder=${TMPDIR:-/tmp}
    if ((${#folder} > 24)); then folder=/tmp; fi
    sessions=$(mktemp -d "$folder/ray-XXXXXX")
    trap "rm -rf \"$sessions\"" EXIT
    ray start --block --disable-usage-stats --temp-dir="$sessions/ray" "$@" &
    trap "kill -TERM $!" USR2
    until wait $!; [ -z "$(jobs -r)" ]; do :; done
  ' start-ray --num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@" &
  ray_pids+=($!)
}

# shellcheck disable=SC2329  # called by the trap
stop_nodes() {
  kill -USR2 "${ray_pids[@]}" 2>/dev/null || true
  wait "${ray_pids[@]}" 2>/dev/null || true
}
trap stop_nodes EXIT

num_ready() { ray status --address="$address" 2>/dev/null | sed -n '/^Active:/,/^Pending:/p' | grep -c '^ *[0-9]* node_' || true; }

wait_until_ready() { # how many nodes
  local deadline=$((SECONDS + ready_seconds)) ready
  until ready=$(num_ready) && ((ready >= $1)); do
    if ((SECONDS > deadline)); then
      echo "error: $ready of $1 nodes are up after $ready_seconds s" >&2
      exit 4
    fi
    for pid in "${ray_pids[@]}"; do
      if ! kill -0 "$pid" 2>/dev/null; then
        echo "error: Ray ended on a node as it started; see above" >&2
        exit 4
      fi
    done
    sleep 2
  done
}

start_node "$head" --head --port="$port" --node-ip-address="$head_ip" --include-dashboard=false
wait_until_ready 1
for node in "${nodes[@]:1}"; do
  start_node "$node" --address="$address"
done
wait_until_ready "${#nodes[@]}"

sweeps run "$@" --resume --address "$address" &
driver=$!
again=false
trap 'kill -TERM $driver 2>/dev/null' TERM INT
trap 'again=true; kill -TERM $driver 2>/dev/null' USR1
while kill -0 $driver 2>/dev/null; do # a signal ends `wait`, not the driver
  wait $driver || true
done
code=0
wait $driver || code=$?

if $again && [[ $code =~ ^(129|130|143)$ ]]; then   # stopped resumably, whichever signal came first
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
