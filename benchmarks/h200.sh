#!/usr/bin/env bash
# Run the benchmarks that need a GPU, in sections of ten minutes at most.
#
#   OUT=folder benchmarks/h200.sh [--quick] [SECTION…]
#
# Sections: ceilings stages peers-wrn peers-resnet teacher student compiled cached. Each writes a file to
# OUT (default results/h200) and is skipped if that file exists. If a call was interrupted, repeat it: runs
# continue from their checkpoints. --quick runs small versions that a CPU can do. DATA is the data set, a
# name or a path (default cifar10, found in ./data). Missing packages (such as pydantic and tomli-w) may be
# wheels in ./.whl; torch 2.11 or newer is required.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=
[[ ${1:-} == --quick ]] && quick=1 && shift
sections=("$@")
(($#)) || sections=(ceilings stages peers-wrn peers-resnet teacher student compiled cached)
out=${OUT:-results/h200}
runs=${RUNS:-runs/h200}
python=${PYTHON:-$(command -v .venv/bin/python || command -v python3)}
mkdir -p "$out"

if compgen -G '.whl/*.whl' > /dev/null; then
    "$python" -m pip install -q --no-index --no-deps --upgrade --target .whl/site .whl/*.whl
    export PYTHONPATH=$PWD/.whl/site${PYTHONPATH:+:$PYTHONPATH}
fi

if [[ $quick ]]; then
    data=synthetic
    stages=(--quick)
    peers=(--pair tiny --data synthetic --batch 32 --rounds 2 --steps 2)
    ceilings=(--quick)
    teacher=(--recipe teacher_wrn+quickstart --set train.epochs=1 --set data.train_images=320)
    student=(--recipe kd_cutmix+quickstart --set train.minutes=0.2 --set data.train_images=320)
else
    data=${DATA:-cifar10}
    stages=(--recipe kd_cutmix --rounds 20)
    peers=(--data "$data" --batch 512 --rounds 8 --steps 40)
    ceilings=()
    # WRN-16-8 needs less than a third of the operations of WRN-28-10, so that its training fits into a section.
    teacher=(--recipe teacher_wrn --set teacher.depth=16 --set teacher.widen=8 --set train.minutes=7.5)
    student=(--recipe kd_cutmix --set train.minutes=7.5)
fi

save() {  # save FILE COMMAND…: the command's standard output, complete or not at all
    local file=$out/$1
    shift
    if [[ -e $file ]]; then
        echo "$file exists" >&2
    else
        echo "$file: $*" >&2
        "$@" > "$file.part"
        mv "$file.part" "$file"
        cat "$file"
    fi
}

result() {  # result FILE RUN COMMAND…: the run's result.json
    local file=$out/$1 run=$2
    shift 2
    if [[ ! -e $file ]]; then
        "$@" --out "$run" --resume --data "$data"
        cp "$run/result.json" "$file"
        cp "$run/journal.jsonl" "${file%.json}.jsonl"
    fi
}

section() {
    case $1 in
        ceilings) save ceilings.json "$python" -m benchmarks.ceilings --json "${ceilings[@]}" ;;
        stages) save stages.json "$python" -m benchmarks.stages --json "${stages[@]}" ;;
        peers-wrn | peers-resnet)
            [[ $quick ]] || peers+=(--pair "${1#peers-}")
            save "$1.json" "$python" -m benchmarks.peers --json "${peers[@]}" ;;
        teacher) result teacher.json "$runs/teacher" "$python" cli.py train-teacher "${teacher[@]}" ;;
        student | compiled | cached)
            local more=(--teacher "$runs/teacher")
            [[ $1 == cached ]] && more+=(--set cache.views=10)
            [[ $1 == compiled ]] && more+=(--set train.compile=true)
            [[ $1 == compiled && $quick ]] && more+=(--set train.minutes=1) # the time includes compiling
            result "$1.json" "$runs/$1" "$python" cli.py distill "${student[@]}" "${more[@]}" ;;
        *)
            echo "unknown section $1; allowed: ceilings stages peers-wrn peers-resnet teacher student compiled cached" >&2
            exit 2 ;;
    esac
}

for name in "${sections[@]}"; do
    section "$name"
done
ls -l "$out"
