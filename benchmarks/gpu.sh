#!/usr/bin/env bash
# What one GPU does, in nine minutes: steps, memory, where the time goes, and the CIFAR-10 training from memory.
#
#     bash benchmarks/gpu.sh [FOLDER]        tables and JSON go to FOLDER (benchmarks/results/gpu)
#
# Needs torch, timm, accelerate, einops and numpy; peers that are not installed are named as absent. Each part has its own time
# limit, the parts that matter most come first, and one that fails is reported and does not stop the others. DRY=1 runs all of it
# on a CPU, small, to see that it runs.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-benchmarks/results/gpu}")
mkdir -p "$out"
export OUT="$out"
failed=0

part() { # seconds, name, command
    local limit=$1 name=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" >"$out/$name.md" 2>"$out/$name.log"
    local code=$?
    if [ $code -ne 0 ]; then
        failed=1
        echo "   failed with $code (124: over $limit s); the end of $name.log:"
        tail -n 3 "$out/$name.log" | sed 's/^/   /'
    else
        grep '^|' "$out/$name.md" || tail -n 3 "$out/$name.md"
    fi
}

python - <<'PYTHON' | tee "$out/machine.txt"
import torch, timm, accelerate
print("torch", torch.__version__, "timm", timm.__version__, "accelerate", accelerate.__version__)
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
PYTHON

step=(python -m benchmarks.train.step --save)
profile=(python -m benchmarks.train.profile_step)
if [ "${DRY:-}" ]; then
    part 300 step-eager "${step[@]}" --size tiny --image 64 --batch 2 --clips 1 --frames 4 --repeats 2 --methods mae crossmae_25 --out "$out/eager"
    part 300 profile "${profile[@]}" --methods mae --size tiny --batch 2 --top 8
    part 300 cifar10 python -m benchmarks.data.in_memory --steps 10 --workers 0 --out "$out/cifar10.json"
    exit $failed
fi

part 110 step-large "${step[@]}" --size large --batch 256 --clips 32 --repeats 7 --out "$out/large"
part 130 step-large-compiled "${step[@]}" --size large --batch 256 --clips 32 --repeats 7 --compile --out "$out/large-compiled"
part 45 profile-large "${profile[@]}" --methods mae videomae --size large --batch 256 --clips 32
part 50 step-base "${step[@]}" --size base --batch 512 --clips 64 --repeats 5 --out "$out/base"
part 60 step-huge "${step[@]}" --size huge --batch 128 --clips 16 --repeats 5 --alone --out "$out/huge"
for batch in 64 512 1024; do
    part 25 "step-large-$batch" "${step[@]}" --size large --batch $batch --methods mae crossmae_25 --repeats 3 --alone --out "$out/large-$batch"
done
part 60 cifar10 python -m benchmarks.data.in_memory --steps 1000 --workers 8 --out "$out/cifar10.json"
exit $failed
