#!/usr/bin/env bash
# bash benchmarks/gpu/prepare.sh [FOLDER]: downloads what a GPU machine without a network lacks: FOLDER/wheels (small
# packages) and FOLDER/gpu-faiss.tar.xz. Needs gcc, pip, xz, unzip and a network; about three minutes and 130 MB.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-build/gpu}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
. "$here/platform.sh"
pydantic=$(grep '^pydantic==' "$here/../../constraints.txt")
python3 -m pip download -q "${platform[@]}" -d "$folder/wheels" "$pydantic"
python3 -m pip download -q --no-deps "${platform[@]}" -d "$folder/wheels" flash-kmeans==0.3.1
[ -e "$folder/gpu-faiss.tar.xz" ] || bash "$here/faiss/pack.sh" "$folder/gpu-faiss.tar.xz"
du -sh "$folder"
