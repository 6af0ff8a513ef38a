#!/bin/sh
# Checks and measures on this machine's GPU; needs its driver and nothing else.
#
#   ./run.sh                conformance, goldens, sanitizers if there are any, benches
#   ./run.sh --standin      the same on the stand-in for the driver, with small sizes: does the bundle run?
#
# Results (JSON, for `cargo xtask report --add`) and logs go to $OUT, by default ./out; the model that is read from disk is
# written below $SCRATCH, by default below $OUT. A step that fails or takes more than $LIMIT seconds, by default 900, does not
# end the run. Ends with 0 if every step passed.
set -u
cd "$(dirname "$0")" || exit 2
here=$(pwd)
out=${OUT:-$here/out}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
steps=$out/steps.tsv
: >"$steps"
limit=${LIMIT:-900}

if [ "${1:-}" = --standin ]; then
    if [ ! -f "$here/standin/libcuda.so.1" ]; then
        echo "no stand-in in this bundle: make it with cargo xtask gpu-bundle --standin" >&2
        exit 2
    fi
    LD_LIBRARY_PATH=$here/standin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    AIRLLM_BENCH_QUICK=1
    export LD_LIBRARY_PATH AIRLLM_BENCH_QUICK
    sanitizers=no
else
    sanitizers=yes
fi
AIRLLM_REPOSITORY=$here/repository
AIRLLM_BENCH_OUT=$out
AIRLLM_BENCH_COMMIT=$(cat "$here/commit")
AIRLLM_BENCH_SCRATCH=${SCRATCH:-$out/scratch}
mkdir -p "$AIRLLM_BENCH_SCRATCH"
export AIRLLM_REPOSITORY AIRLLM_BENCH_OUT AIRLLM_BENCH_COMMIT AIRLLM_BENCH_SCRATCH

count() {
    # The sum of the numbers before a word in the lines of test harnesses.
    sed -n "s/^test result: .* \([0-9][0-9]*\) $1.*/\1/p" "$2" | awk '{ sum += $1 } END { print sum + 0 }'
}

# step NAME SECONDS PROGRAM...
step() {
    name=$1 seconds=$2
    shift 2
    log=$out/$name.log
    start=$(date +%s)
    if command -v timeout >/dev/null 2>&1; then
        timeout -k 10 "$seconds" "$@" >"$log" 2>&1
    else
        "$@" >"$log" 2>&1
    fi
    code=$?
    took=$(($(date +%s) - start))
    passed=$(count passed "$log") failed=$(count failed "$log")
    skipped=$(grep -c '^skipped: ' "$log")
    status=passed
    if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        status="took more than $seconds s"
    elif [ "$code" -ne 0 ]; then
        status="FAILED ($code)"
    elif [ "$skipped" -gt 0 ]; then
        status=incomplete
    fi
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$status" "$took" "$passed" "$failed" "$skipped" >>"$steps"
    printf '%-12s %s, %s s' "$name" "$status" "$took"
    [ "$((passed + failed))" -gt 0 ] && printf ', %s tests passed, %s failed' "$passed" "$failed"
    printf '\n'
    if [ "$status" != passed ]; then
        grep '^skipped: ' "$log" | sort -u | head -n 3
        tail -n 5 "$log" | sed 's/^/    /'
    fi
    return 0
}

step devices 60 ./bin/gpu-bench devices
cat "$out/devices.log"
step conformance "$limit" ./bin/cuda verbs:: --test-threads=1
step goldens "$limit" ./bin/cuda models:: goldens:: --test-threads=1

sanitizer=
for candidate in compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer"; do
    if [ -z "$sanitizer" ] && command -v "$candidate" >/dev/null 2>&1; then sanitizer=$candidate; fi
done
if [ "$sanitizers" = no ]; then
    echo "memcheck, racecheck: for a GPU"
elif [ -z "$sanitizer" ]; then
    echo "memcheck, racecheck: no compute-sanitizer on this machine"
else
    for tool in memcheck racecheck; do
        step "$tool" "$((limit * 2))" "$sanitizer" --tool "$tool" --error-exitcode 9 ./bin/cuda verbs:: --test-threads=1
        step "$tool-model" "$limit" "$sanitizer" --tool "$tool" --error-exitcode 9 ./bin/cuda models::tiny --test-threads=1
    done
fi

./bin/gpu-bench checks "$steps" >"$out/checks.log" 2>&1 || echo "checks: no result was written; see $out/checks.log"
for bench in pcie gemv gemm attention overlap; do
    step "$bench" "$limit" ./bin/gpu-bench "$bench"
done
# Models that do not fit: Llama 2 70B in RAM and on disk, as many layers as there is room for; layers of Llama 3.1 405B.
for case in pinned disk large; do
    step "token-$case" "$limit" ./bin/gpu-bench token --case "$case"
done
rm -rf "$AIRLLM_BENCH_SCRATCH"

bad=$(awk -F '\t' '$2 != "passed"' "$steps" | wc -l)
echo
echo "$(wc -l <"$steps") steps, $bad not passed; results in $out:"
ls "$out"
[ "$bad" -eq 0 ]
