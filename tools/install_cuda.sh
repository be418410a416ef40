#!/usr/bin/env bash
# Prints the path of nvcc 13 on standard output. Where none is installed (CUDACXX, PATH, /usr/local/cuda), unpacks one from the
# Python package index, pinned by hash, into build/cuda-toolkit: about 100 MB to fetch, 300 MB on disk, no root needed for it.
set -euo pipefail
cd "$(dirname "$0")/.."

is_13() { [ -x "${1:-}" ] && "$1" --version 2>/dev/null | grep -q 'release 13\.'; }

toolkit=$PWD/build/cuda-toolkit
for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc "$toolkit/nvidia/cu13/bin/nvcc"; do
  if is_13 "$nvcc"; then
    realpath "$nvcc"
    exit
  fi
done

if ! python3 -m pip --version >/dev/null 2>&1; then
  run=()
  [ "$(id -u)" -eq 0 ] || run=(sudo)
  { "${run[@]}" apt-get update -q && "${run[@]}" apt-get install -y -q --no-install-recommends python3-pip; } >&2
fi
echo "Unpacking nvcc 13.0 into build/cuda-toolkit" >&2
rm -rf "$toolkit"
python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: --require-hashes \
  -r cmake/cuda-wheels.txt --target "$toolkit" >&2
root=$toolkit/nvidia/cu13
ln -s lib "$root/lib64"  # where nvcc looks
ln -s libcudart.so.13 "$root/lib/libcudart.so"  # by which CMake knows a toolkit
is_13 "$root/bin/nvcc" || { echo "install_cuda.sh: $root/bin/nvcc does not run" >&2; exit 1; }
echo "$root/bin/nvcc"
