#!/usr/bin/env bash
# A run that outlives its job: SLURM warns with SIGUSR1 two minutes before the time is up, the run
# finishes its step, saves and leaves, and the job is queued again, to go on where it stood.
#
#   sbatch docs/slurm.sh distill --recipe kd_cutmix --teacher runs/teacher --out runs/student
#   sbatch --gres=gpu:4 …                   on the GPUs of one node
#   sbatch --nodes=2 --gres=gpu:4 …         on those of two, with --out on a disk that both see
#   sbatch --array=0-7 docs/slurm.sh sweep recipes/sweeps/learning_rate.toml --teacher runs/teacher --out runs/sweep
#                                           eight workers; UNDERSTUDY_STORAGE says in which database
#
#SBATCH --job-name=understudy
#SBATCH --gres=gpu:1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@120

set -uo pipefail
[[ " $* " == *" --out"[\ =]* ]] || { echo "docs/slurm.sh: give --out, so that the next job finds the run" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"
case $1 in train-teacher | distill) set -- "$@" --resume ;; esac # a sweep goes on by itself

nodes=${SLURM_JOB_NUM_NODES:-1} gpus=${SLURM_GPUS_ON_NODE:-1}
if ((nodes > 1)); then # one launcher a node, which all meet at the first; two jobs there need two ports
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    # shellcheck disable=SC2016  # the rank is the node's own
    launch=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c 'exec .venv/bin/accelerate launch --machine_rank "$SLURM_NODEID" "$@"' bash
        --multi_gpu --num_machines "$nodes" --num_processes $((nodes * gpus))
        --main_process_ip "$head" --main_process_port $((20000 + SLURM_JOB_ID % 20000)))
elif ((gpus > 1)); then
    launch=(.venv/bin/accelerate launch --multi_gpu --num_processes "$gpus" --main_process_port $((20000 + SLURM_JOB_ID % 20000)))
else
    launch=(.venv/bin/python)
fi

# The launchers know SIGTERM, not SIGUSR1, and hand it on to their processes.
run= told=
trap 'told=USR1; stop' USR1
trap 'told=TERM; stop' TERM # cancelled: it saves, and that is all
stop() { [[ -z $run ]] || kill -TERM "$run"; }
"${launch[@]}" cli.py "$@" &
run=$!
[[ -z $told ]] || stop # told before there was a run to tell
while :; do
    wait "$run"
    code=$?
    kill -0 "$run" 2> /dev/null || break # a signal ends the wait, not the run, which saves
done
if [[ $told == USR1 ]] && ((code != 0)); then # 143, or the launcher's own code
    job=$SLURM_JOB_ID # one task of an array has the whole array's number
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    scontrol requeue "$job"
fi
exit "$code"
