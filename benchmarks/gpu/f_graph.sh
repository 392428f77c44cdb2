#!/usr/bin/env bash
# bash benchmarks/gpu/f_graph.sh [SECONDS]: part f, the real graph on the GPU: `hardmoe demo` on synthetic posts, with
# FAISS on the GPU. In the repository's root, after the parts of graph_parts.sh were copied to $GRAPH/1/part,
# $GRAPH/2/part ... Needs 5 GB in $GRAPH. Writes $OUT/graph.txt
# and $OUT/summary.md, the table of docs/gpu.md.
set -u
here=$(cd "$(dirname "$0")" && pwd)
limit=${1:-150}
dependencies=${DEPENDENCIES:-build/gpu} site=${SITE:-/tmp/hardmoe-site} graph=${GRAPH:-/tmp/hardmoe-graph}
export OUT=${OUT:-build/gpu-results}
mkdir -p "$OUT"
if [ ! -e "$graph/.ready" ]; then
    mkdir -p "$graph/wheels" "$graph/site"
    cat $(ls -v "$graph"/[0-9]*/part) | tar -C "$graph/wheels" -xf - || exit 1
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$graph/site" \
        "$graph"/wheels/*.whl || exit 1
    touch "$graph/.ready"
fi
[ -d "$site/faiss" ] || { mkdir -p "$site" && python3 -m tarfile -e "$dependencies/gpu-faiss.tar.xz" "$site"; }
export PYTHONPATH=$graph/site:$site:$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
began=$SECONDS
timeout "$limit" python3 "$here/hardmoe.py" demo --root "$graph/demo" >"$OUT/graph.txt" 2>&1
code=$?
card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
printf '{"part": "f", "what": "hardmoe demo", "on": "%s", "at": 0, "exit_code": %d, "seconds": %d}\n' \
    "${card:-no card}" "$code" $((SECONDS - began)) >>"$OUT/results.jsonl"
echo "graph: exit code $code"
tail -40 "$OUT/graph.txt"
grep -rhoE '"device": "[a-z]*"' "$graph/demo" --include=*.json 2>/dev/null | sort | uniq -c
nvidia-smi --query-gpu=memory.used --format=csv,noheader
python3 "$here/summary.py" <"$OUT/results.jsonl" | tee "$OUT/summary.md"
