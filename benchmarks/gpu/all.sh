#!/usr/bin/env bash
# bash benchmarks/gpu/all.sh [A B C D E]: the parts one after the other, each within that many seconds (0 skips one);
# the GPU tests within twice A. In the repository's root. Writes $OUT/results.jsonl (a line per measurement, at once),
# $OUT/log.txt, $OUT/b-kernels-*.txt and, in the end, $OUT/summary.md: the table of docs/gpu.md. DEPENDENCIES: the
# folder that prepare.sh wrote. MPS=1: part d also under CUDA MPS.
set -u
here=$(cd "$(dirname "$0")" && pwd)
dependencies=${DEPENDENCIES:-build/gpu} site=${SITE:-/tmp/hardmoe-site}
export OUT=${OUT:-build/gpu-results}
mkdir -p "$OUT"
if [ ! -e "$site/.ready" ]; then
    mkdir -p "$site"
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        "$dependencies"/wheels/*.whl || exit 1
    [ ! -e "$dependencies/gpu-faiss.tar.xz" ] || python3 -m tarfile -e "$dependencies/gpu-faiss.tar.xz" "$site"
    touch "$site/.ready"
fi
export PYTHONPATH=$site:$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
part() { # name, seconds, arguments of python3
    local name=$1 seconds=$2 began=$SECONDS code
    shift 2
    [ "$seconds" -gt 0 ] || return 0
    timeout --kill-after=5 $((seconds + 10)) python3 "$@" >>"$OUT/log.txt" 2>&1
    code=$?
    echo "== $name: exit code $code, $((SECONDS - began)) s"
    [ "$code" = 0 ] || tail -n 3 "$OUT/log.txt" | cut -c1-200
}
a=${1:-45} b=${2:-160} c=${3:-75} d=${4:-75} e=${5:-70}
part tests $((2 * a)) -m pytest -v --tb=short -W default -m gpu tests/gpu -p no:cacheprovider
part a "$a" "$here/a_checks.py" "$a"
part b "$b" "$here/b_step.py" "$b"
part c "$c" "$here/c_kmeans.py" "$c"
part d "$d" "$here/d_experts.py" "$d" ${MPS:+--mps}
part e "$e" "$here/e_mixture.py" "$e"
grep -E "^(FAILED|ERROR) |(passed|failed|skipped).* in [0-9.]+s" "$OUT/log.txt" | cut -c1-200 | tail -40
touch "$OUT/results.jsonl"
python3 "$here/short.py" <"$OUT/results.jsonl"
python3 "$here/summary.py" <"$OUT/results.jsonl" | tee "$OUT/summary.md"
