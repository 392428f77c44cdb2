# Sourced by the parts that run the real graph, with $here set: installs its packages into $GRAPH (5 GB), once, from the
# parts of graph_parts.sh, copied before to $GRAPH/1/part, $GRAPH/2/part ..., and FAISS as prepare.sh packed it.
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
