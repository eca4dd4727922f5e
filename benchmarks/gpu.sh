#!/usr/bin/env bash
# What one GPU shows, in order of worth: correctness, steps, CIFAR-10 from start to end, and where the time of a step goes.
#
#     CIFAR10=FOLDER bash benchmarks/gpu.sh [OUT]        tables, JSON and logs go to OUT (benchmarks/results/gpu)
#
# A part that has ended well leaves OUT/NAME.done and is not repeated, so that the same command goes on where an earlier visit
# ended. MINUTES (14) is the length of a visit: a part whose limit does not fit into what is left is kept for the next one. A part
# that fails is reported and does not stop the others. CIFAR10 is a folder of parquet files, or uoft-cs/cifar10; without it the
# training is timed on images that are computed. benchmarks/gpu_requirements.txt lists the packages that images with torch often
# lack; peers that are not installed are named as absent. DRY=1 runs all of it on a CPU, small, to see that it runs.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-benchmarks/results/gpu}")
mkdir -p "$out"
failed=0
began=$SECONDS

part() { # seconds, name, command
    local limit=$1 name=$2
    shift 2
    [ -e "$out/$name.done" ] && echo "== $name: done before" && return
    if ((SECONDS - began + limit > ${MINUTES:-14} * 60)); then
        echo "== $name: needs up to $limit s, more than is left of this visit; the same command goes on here"
        return
    fi
    echo "== $name: $*"
    timeout --signal INT --kill-after 20 "$limit" "$@" >"$out/$name.md" 2>"$out/$name.log"
    local code=$?
    if [ $code -ne 0 ]; then
        failed=1
        echo "   failed with $code (124: over $limit s); the end of $name.md and $name.log:"
        tail -qn 4 "$out/$name.md" "$out/$name.log" | sed 's/^/   /'
    else
        touch "$out/$name.done"
        grep '^|' "$out/$name.md" || tail -n 3 "$out/$name.md"
    fi
}

python - <<'PYTHON' | tee "$out/machine.txt"
import torch, timm, accelerate
print("torch", torch.__version__, "timm", timm.__version__, "accelerate", accelerate.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
PYTHON

tests=(python -m pytest -q -n 0 -m gpu tests/train/test_gpu.py)
step=(python -m benchmarks.train.step --save)
profile=(python -m benchmarks.train.profile_step)
cifar=(python -m benchmarks.evaluate.cifar10 --source "${CIFAR10:-}" --out "$out/cifar10")

if [ "${DRY:-}" ]; then
    few=(-k "fsdp or ddp or resized or evaluations or image_mae-fp32")
    MMM_TEST_DEVICE=cpu part 300 correctness "${tests[@]}" "${few[@]}"
    part 300 step-eager "${step[@]}" --size tiny --image 64 --batch 2 --clips 1 --frames 4 --repeats 2 --methods mae crossmae_25 --out "$out/eager"
    if [ "${CIFAR10:-}" ]; then
        part 600 cifar10 "${cifar[@]}" --epochs 1 --probe_epochs 1 --tune_epochs 1 --train.batch_size 64 --data.workers 0
    else
        part 300 cifar10-memory python -m benchmarks.data.in_memory --steps 10 --workers 0 --out "$out/cifar10.json"
    fi
    part 300 profile "${profile[@]}" --methods mae --size tiny --batch 2 --top 8
    exit $failed
fi

part 240 correctness "${tests[@]}"
part 110 step-large "${step[@]}" --size large --batch 256 --clips 32 --repeats 7 --out "$out/large"
part 130 step-large-compiled "${step[@]}" --size large --batch 256 --clips 32 --repeats 7 --compile --out "$out/large-compiled"
part 45 profile-large "${profile[@]}" --methods mae videomae --size large --batch 256 --clips 32
part 50 step-base "${step[@]}" --size base --batch 512 --clips 64 --repeats 5 --out "$out/base"
part 60 cifar10-memory python -m benchmarks.data.in_memory --steps 1000 --workers 8 --out "$out/cifar10.json"
if [ "${CIFAR10:-}" ]; then
    part 780 cifar10 "${cifar[@]}" --minutes 7 --train.batch_size 1024 --data.workers 12
fi
part 60 step-huge "${step[@]}" --size huge --batch 128 --clips 16 --repeats 5 --alone --out "$out/huge"
for batch in 64 512 1024; do
    part 25 "step-large-$batch" "${step[@]}" --size large --batch $batch --methods mae crossmae_25 --repeats 3 --alone --out "$out/large-$batch"
done
exit $failed
