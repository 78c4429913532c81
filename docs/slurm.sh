#!/usr/bin/env bash
# A run that outlives its job: SLURM warns with SIGUSR1 two minutes before the time is up, the run
# finishes its step, saves and leaves, and the job is queued again, to go on where it stood.
#
#   sbatch docs/slurm.sh distill --recipe kd_cutmix --teacher runs/teacher --out runs/student
#
#SBATCH --job-name=understudy
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#SBATCH --signal=B:USR1@120

set -uo pipefail
[[ " $* " == *" --out "* ]] || { echo "docs/slurm.sh: give --out, so that the next job finds the run" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"

# On several GPUs: accelerate launch --num_processes N cli.py. The launcher knows SIGTERM, not
# SIGUSR1, and hands it on to its processes.
.venv/bin/python cli.py "$@" --resume &
run=$!
warned=
trap 'warned=1; kill -TERM "$run"' USR1 TERM
wait "$run"
code=$?
if [[ -n $warned ]]; then # the signal ended the wait, not the run, which saves
    wait "$run"
    code=$?
fi
if [[ -n $warned ]] && ((code != 0)); then # 143, or the launcher's own code
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
