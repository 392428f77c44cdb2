#!/usr/bin/env bash
# bash benchmarks/gpu/faiss/pack.sh FILE: packs faiss-gpu (its code for one chip only) for a GPU machine with CUDA 13's
# libraries: FILE, a .tar.xz of about 20 MiB, to be unpacked on PYTHONPATH. CHIP: sm_90 (H100, H200) by default.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
file=$(realpath -m "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$here/../platform.sh"
faiss=$(grep '^faiss-gpu==' "$here/../../../constraints.txt")
cd "$work"
gcc -shared -fPIC -O2 -Wl,-soname,libcublas.so.12 -Wl,--version-script="$here/cublas12.map" "$here/cublas12.c" \
    -o libcublas.so.12 -ldl
echo | gcc -shared -fPIC -Wl,-soname,libcublasLt.so.12 -x c - -o libcublasLt.so.12
python3 -m pip download -q --no-deps "${platform[@]}" -d wheels "$faiss" nvidia-cuda-runtime-cu12==12.9.79
unzip -qo wheels/faiss_gpu-*.whl -d site
unzip -qo wheels/nvidia_cuda_runtime*.whl 'nvidia/cuda_runtime/lib/libcudart.so.12' -d runtime
python3 "$here/../fatbin.py" site/faiss/libfaiss.so "${CHIP:-sm_90}" slim.so
mv slim.so site/faiss/libfaiss.so
chmod 755 site/faiss/libfaiss.so
cp runtime/nvidia/cuda_runtime/lib/libcudart.so.12 libcublas.so.12 libcublasLt.so.12 site/faiss/
rm -rf site/faiss/_gpu_build.py site/faiss/*.pyi site/faiss/contrib/tests
python3 - <<'PYTHON'
from pathlib import Path

path = Path("site/faiss/__init__.py")
text = path.read_text()
mark = "def _preload_gpu_libs():"
preload = '''import ctypes as _ctypes
import os as _os

import torch as _torch  # loads libcublas.so.13, to which our libcublas.so.12 forwards

for _name in ("libcudart.so.12", "libcublasLt.so.12", "libcublas.so.12"):
    _ctypes.CDLL(_os.path.join(_os.path.dirname(__file__), _name), mode=_ctypes.RTLD_GLOBAL)


'''
assert text.count(mark) == 1, f"faiss/__init__.py has {text.count(mark)} times {mark!r}: wanted one"
path.write_text(text.replace(mark, preload + mark))
PYTHON
tar -C site -cf - faiss faiss_gpu.libs | nice -n 10 xz -T1 -6 >"$file"
ls -la "$file"
