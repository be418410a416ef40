#!/usr/bin/env bash
# The GPU's tests on a machine that has a driver and nothing else: no compiler, no build tree.
#   device_test.sh pack BUILD FILE        here: what the tests need of a build with CALANDRA_CUDA=ON, stripped, into FILE (.tar.xz)
#   device_test.sh sanitizer FILE         here: compute-sanitizer, by hash from the Python package index, into FILE (.tar.xz, 7 MB)
#   device_test.sh run FILE OUT [PART…]   there, in a copy of the repository: the parts one after the other, logs and summary.txt into OUT
#
# Parts (all of them unless some are named):
#   tests      every test of the device
#   lossless   whole models through the engine, deterministic and fast, with steps launched ahead and not
#   memory     a thousand requests leave the device's memory as it was
#   sanitize   ops and tiny models under memcheck, racecheck and initcheck: by the compute-sanitizer of the machine, or that in $SANITIZER
#              (what `sanitizer` made); without either it is left out
#   bench      latency and throughput of random weights, deterministic and fast, with steps launched ahead and not
#
# The exit status of `run` is 0 when all tests passed. One that takes longer than $LIMIT seconds (240) counts as failed.
set -euo pipefail

tests=(cuda_plugin_test cuda_test cuda_parts_test cuda_graph_test one_order_test exactness_test ops_test oracle_test bailing_oracle_test
  mtp_test vision_prompts_test demo_test)
engine_tests=(losslessness_test losslessness_async_test device_memory_test)
sanitized=(cuda_parts_test oracle_test bailing_oracle_test mtp_test)
# Of tests over several backends only the device's; the others ran where the build was made.
filter='*cuda*:*Cuda*'

die() { echo "device_test.sh: $1" >&2; exit 2; }

pack() {
  local build=$1 folder
  folder=$(mktemp -d)
  for file in libcalandra_cuda.so calandra "${tests[@]}" "${engine_tests[@]}"; do
    [ -f "$build/bin/$file" ] || die "$build/bin/$file is not built"
    strip -s -o "$folder/$file" "$build/bin/$file"
  done
  # Tests look for their data where the source was when they were built.
  sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt" >"$folder/source_dir"
  XZ_OPT=-9 tar -C "$folder" -cJf "$2" .  # its window finds what the programs have in common
  rm -rf "$folder"
  du -h "$2"
}

sanitizer() {
  local folder
  folder=$(mktemp -d)
  # Earlier packages lack the program that starts the tested one.
  echo 'nvidia-cuda-sanitizer-api==13.5.25 --hash=sha256:5df2efbdf605a812c6bac07600dd3d801cb9d334a30376113a6f1e2bc0679f54' >"$folder/wheel.txt"
  python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: --require-hashes \
    -r "$folder/wheel.txt" --target "$folder"
  mv "$folder/nvidia/cu13/compute-sanitizer" "$folder/sanitizer"
  rm -rf "$folder/sanitizer"/{docs,include,x86}
  chmod +x "$folder/sanitizer"/*
  tar -C "$folder" -cJf "$1" sanitizer
  rm -rf "$folder"
  du -h "$1"
}

# What a run needs of the machine.
check_machine() {
  command -v nvidia-smi >/dev/null || die "there is no nvidia-smi: a driver of version 580 or later is needed"
  local name driver capability
  IFS=, read -r name driver capability < <(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader) ||
    die "nvidia-smi finds no GPU"
  [ "${driver%%.*}" -ge 580 ] || die "the driver is version$driver; 580 or later is needed"
  [ "${capability// /}" = 9.0 ] || die "$name has compute capability$capability; the kernels are built for 9.0 (Hopper)"
  [ "$(uname -m)" = x86_64 ] || die "the programs are built for x86-64"
}

# run_one NAME PROGRAM ARGUMENT…: a line of the summary, with the last line that matches $says, and the names of what failed.
run_one() {
  local name=$1 start=$SECONDS status=0 last
  shift
  timeout "$LIMIT" "$@" >"$out/$name.log" 2>&1 || status=$?
  last=$(grep -E "$says" "$out/$name.log" || tail -n 1 "$out/$name.log")
  {
    printf '%-34s status %3d  %4d s  %s\n' "$name" $status $((SECONDS - start)) "$(tr '\n' ' ' <<<"$last")"
    grep -E '^\[  FAILED  \] .*\.' "$out/$name.log" | sed 's/ (.*//' | sort -u | head -40 || true
  } >"$out/$name.summary"
  return $status
}

# The same beside what comes next.
later() {
  run_one "$@" &
  started+=($!)
}

# Waits for what was started, and adds its lines to the summary.
finish() {
  local job
  for job in "${started[@]}"; do wait "$job" || failed=1; done
  started=()
  cat "$out"/*.summary | tee -a "$out/summary.txt"
  rm -f "$out"/*.summary
}

part_tests() {
  local says='^\[  (PASSED|FAILED)  \] [0-9]+ test' test
  for test in "${tests[@]}"; do later "$test" "$folder/$test" --gtest_filter="$filter"; done
  CALANDRA_DEMO_DIR=$PWD/demo later generate "$folder/calandra" generate --backend cuda --temperature 0 'What does "ancient" mean?'
  finish
}

part_lossless() {
  local says='differences' model backend test
  for model in demo_qwen3_5 demo_bailing; do
    [ -d "demo/${model/_/-}" ] || continue
    for backend in cuda cuda_fast; do
      for test in losslessness_test losslessness_async_test; do
        CALANDRA_LOSSLESS_BACKEND=$backend later "$test.$backend.$model" "$folder/$test" --gtest_filter="*/$model"
      done
    done
  done
  finish
}

# Nobody else may use the device meanwhile.
part_memory() {
  local says='requests in' model backend
  for model in qwen3_5 bailing; do
    [ -d "demo/demo-$model" ] || continue
    for backend in cuda cuda_fast; do
      CALANDRA_LOSSLESS_BACKEND=$backend run_one "device_memory_test.$backend.$model" "$folder/device_memory_test" \
        --gtest_filter="*/$model" || failed=1
    done
  done
  finish
}

part_sanitize() {
  local says='ERROR SUMMARY|RACECHECK SUMMARY|^\[  PASSED' tool test program
  program=$(command -v compute-sanitizer || true)
  if [ -n "${SANITIZER:-}" ]; then
    tar -C "$folder" -xJf "$SANITIZER"
    program=$folder/sanitizer/compute-sanitizer
  elif [ -z "$program" ]; then
    echo 'sanitize: left out, there is no compute-sanitizer' | tee -a "$out/summary.txt"
    return
  fi
  for tool in memcheck racecheck initcheck; do
    local left_out='*Death*'
    # It does not follow a barrier on which one lane arrives for its warp, behind __syncwarp, and reports the scales of gemm_f8.
    [ "$tool" = racecheck ] && left_out+=':*OfManyRows*'
    for test in "${sanitized[@]}"; do
      # Death tests fork, and what comes out of a fork cannot be watched. Refused allocations are tested on purpose.
      later "$tool.$test" "$program" --tool "$tool" --report-api-errors no --error-exitcode 9 "$folder/$test" \
        --gtest_filter="$filter:-$left_out"
    done
  done
  finish
}

# One JSON line each.
part_bench() {
  local says='^{' shape way batch
  for shape in ${SHAPES:-qwen3_5-0.8b}; do
    for way in '' --deterministic; do
      for batch in 1 16 64; do
        run_one "latency.$shape.$batch${way/--/.}" "$folder/calandra" bench latency --shape "$shape" --load-format dummy --backend cuda $way --json \
          --batch-size $batch --input-len 512 --output-len 64 --max-num-batched-tokens 2048 --repetitions 2 || failed=1
      done
      run_one "throughput.$shape${way/--/.}" "$folder/calandra" bench throughput --shape "$shape" --load-format dummy --backend cuda $way --json \
        --no-async-scheduling --num-prompts 32 --input-len 256 --output-len 64 --max-concurrency 1,16 || failed=1
    done
    run_one "throughput.$shape.ahead" "$folder/calandra" bench throughput --shape "$shape" --load-format dummy --backend cuda --json \
      --async-scheduling --num-prompts 32 --input-len 256 --output-len 64 --max-concurrency 1,16 || failed=1
  done
  finish
}

run() {
  local source part
  LIMIT=${LIMIT:-240}
  [ -f "$1" ] || die "$1 is not there"
  folder=$(mktemp -d) out=$2 failed=0 started=()
  shift 2
  [ $# -gt 0 ] || set -- tests lossless memory sanitize bench
  check_machine
  tar -C "$folder" -xJf "$archive" 2>/dev/null || python3 -m tarfile -e "$archive" "$folder"
  mkdir -p "$out"
  source=$(cat "$folder/source_dir")
  if [ ! -e "$source" ]; then
    mkdir -p "$(dirname "$source")"
    ln -s "$PWD" "$source"
  fi
  nvidia-smi >"$out/device.txt"
  for part in "$@"; do
    declare -F "part_$part" >/dev/null || die "there is no part $part"
    "part_$part"
  done
  rm -rf "$folder"
  return $failed
}

case ${1:-} in
  pack) pack "$2" "$3" ;;
  sanitizer) sanitizer "$2" ;;
  run) archive=$2; shift; run "$@" ;;
  *) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
