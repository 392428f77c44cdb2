#!/usr/bin/env bash
# bash benchmarks/gpu/graph_parts.sh WHEELS HAVE [SIZE]: what `hardmoe run` needs beside the packages that the GPU
# machine has, as one archive in parts of at most SIZE (58M): build/gpu-graph-1/part, build/gpu-graph-2/part ...
# WHEELS: a folder of wheels for that machine, dependencies included. HAVE: a file with the names of the packages that
# it has, one a line (pip list --format=freeze | cut -d= -f1).
set -euo pipefail
wheels=$1 have=$2 size=${3:-58M}
rm -rf build/gpu-graph-*
lacking=$(mktemp -d)
trap 'rm -rf "$lacking"' EXIT
for file in "$wheels"/*.whl; do
    name=$(basename "$file" | cut -d- -f1 | tr _. - | tr '[:upper:]' '[:lower:]')
    tr _. - <"$have" | grep -qixF -- "$name" || ln -s "$(realpath "$file")" "$lacking/"
done
mkdir -p build
tar -C "$lacking" -chf - . | split -b "$size" - "build/gpu-graph-part."
number=0
for part in build/gpu-graph-part.*; do
    number=$((number + 1))
    mkdir -p "build/gpu-graph-$number"
    mv "$part" "build/gpu-graph-$number/part"
done
du -sh build/gpu-graph-*
