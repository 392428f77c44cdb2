#!/usr/bin/env bash
# bash benchmarks/gpu/f_graph.sh [SECONDS]: part f, the real graph on the GPU: `hardmoe demo` on synthetic posts, with
# FAISS on the GPU. In the repository's root, after what graph_site.sh wants. Writes $OUT/graph.txt and $OUT/summary.md,
# the table of docs/gpu.md.
set -u
here=$(cd "$(dirname "$0")" && pwd)
limit=${1:-150}
. "$here/graph_site.sh"
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
