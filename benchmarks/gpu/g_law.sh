#!/usr/bin/env bash
# bash benchmarks/gpu/g_law.sh SECONDS PHOTOS [OPTIONS of benchmarks/law.py]: part g, the law's wide corner on the GPU:
# 235,000 posts of photos.parquet, width 32 and then 64, 16 experts, three seeds. In the repository's root, after what
# graph_site.sh wants. Stopped by the limit it goes on where it was. Writes $OUT/law.txt and a file for each cell that is
# done into $OUT/law-cells, whose place is benchmarks/law-cells; benchmarks/law.py draws them.
set -u
here=$(cd "$(dirname "$0")" && pwd)
limit=${1:?wanted SECONDS PHOTOS} photos=${2:?wanted SECONDS PHOTOS}
shift 2
. "$here/graph_site.sh"
timeout "$limit" python3 "$here/../law.py" --source "$photos" --root "$graph/law" --cells "$OUT/law-cells" \
    --posts 235000 --widths 32 64 --experts 16 --seeds 0 1 2 "$@" >>"$OUT/law.txt" 2>&1
echo "law: exit code $?"
tail -20 "$OUT/law.txt"
