# Sourced: options of `pip download` for the GPU machine, Python 3.12 on Linux x86-64 unless PYTHON_VERSION says otherwise.
platform=(--only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" --implementation cp
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
