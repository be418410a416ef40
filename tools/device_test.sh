#!/usr/bin/env bash
# The GPU's tests and benches on a machine that has a driver and nothing else: no compiler, no build tree.
#   device_test.sh pack BUILD FILE        here: the programs of a build with CALANDRA_CUDA=ON, stripped, into FILE (.tar.xz)
#   device_test.sh data FILE [FOLDER…]    here: what they read, into FILE (.tar.xz): folders of this repository or beside it
#                                         (../shared/oracle: more models of the oracle); tests/oracle and demo if none is named
#   device_test.sh sanitizer FILE         here: compute-sanitizer, by hash from the Python package index, into FILE (.tar.xz, 7 MB)
#   device_test.sh run FILE OUT [PART…]   there: the parts one after the other, logs and summary.txt into OUT. Data is that of $DATA
#                                         (what `data` made); what is not in there comes from the copy of the repository in which it runs
#
# Parts (tests, lossless, memory, sanitize and bench unless some are named):
#   tests      every test of the device
#   lossless   whole models through the engine, deterministic and fast, with steps launched ahead and not
#   memory     a thousand requests leave the device's memory as it was
#   sanitize   tiny models, and answers of the demo (sampler, steps launched ahead, recordings, drafts), under memcheck, racecheck and
#              initcheck, kernels of few rows (cuda_parts_test) under memcheck alone, since the others take them many minutes: by the
#              compute-sanitizer of the machine, or that in $SANITIZER (what `sanitizer` made); without either it is left out
#   bench      latency, throughput, speculation, startup and ops, which can be named alone: random weights in the shapes $SHAPES
#              (qwen3_5-0.8b), one log each
#
# The exit status of `run` is 0 when all passed, 1 when something failed, else 77: something was skipped or left out, as a program is
# all of whose tests were skipped. What takes longer than $LIMIT seconds (240) counts as failed.
set -euo pipefail

tests=(cuda_plugin_test cuda_test cuda_parts_test cuda_graph_test one_order_test exactness_test every_cut_test ops_test oracle_test
  bailing_oracle_test mtp_test vision_prompts_test demo_test)
engine_tests=(losslessness_test losslessness_async_test device_memory_test)
sanitized=(oracle_test bailing_oracle_test mtp_test)
# Of tests over several backends only the device's; the others ran where the build was made.
filter='*cuda*:*Cuda*'
fp8='{"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}'

die() { echo "device_test.sh: $1" >&2; exit 2; }

pack() {
  local build=$1 folder
  folder=$(mktemp -d)
  for file in libcalandra_cuda.so calandra write_dummy_checkpoint "${tests[@]}" "${engine_tests[@]}"; do
    [ -f "$build/bin/$file" ] || die "$build/bin/$file is not built"
    strip -s -o "$folder/$file" "$build/bin/$file"
  done
  # Tests look for their data where the source was when they were built, and in shared/ beside it.
  sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt" >"$folder/source_dir"
  XZ_OPT=-9 tar -C "$folder" -cJf "$2" .  # its window finds what the programs have in common
  rm -rf "$folder"
  du -h "$2"
}

data() {
  local file=$1 root folder folders=()
  shift
  [ $# -gt 0 ] || set -- tests/oracle demo
  root=$(dirname "$(dirname "$(realpath "$0")")")
  for folder in "$@"; do
    [ -d "$root/$folder" ] || die "$root/$folder is not a folder"
    folders+=("$(realpath -s --relative-to="$(dirname "$root")" "$root/$folder")")
  done
  tar -C "$(dirname "$root")" --transform "s,^$(basename "$root")/,repository/," -cJf "$file" "${folders[@]}"
  du -h "$file"
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

unpack() { tar -C "$2" -xJf "$1" 2>/dev/null || python3 -m tarfile -e "$1" "$2"; }

# link FOLDER CANDIDATE…: the first candidate that is there appears at FOLDER, where the programs look, unless something is there.
link() {
  local at=$1 candidate
  shift
  [ ! -e "$at" ] || return 0
  for candidate in "$@"; do
    [ -d "$candidate" ] || continue
    mkdir -p "$(dirname "$at")" && ln -sfn "$candidate" "$at" || die "programs look for their data in $at, which cannot be made"
    links+=("$at")
    return
  done
}

# run_one NAME PROGRAM ARGUMENT…: a line of the summary, with the last line that matches $says, and the names of what failed.
# Returns 0 if it passed, 77 if all its tests were skipped, else 1.
run_one() {
  local name=$1 start=$SECONDS status=0 last verdict=passed code=0
  shift
  timeout "$LIMIT" "$@" >"$out/$name.log" 2>&1 || status=$?
  last=$(grep -E "$says" "$out/$name.log" || tail -n 1 "$out/$name.log")
  if [ $status -ne 0 ]; then
    verdict=FAILED code=1
  elif grep -q '^\[  PASSED  \] 0 tests' "$out/$name.log"; then
    verdict=SKIPPED code=77
  fi
  {
    printf '%-34s %-7s status %3d  %4d s  %s\n' "$name" $verdict $status $((SECONDS - start)) "$(tr '\n' ' ' <<<"$last")"
    grep -E '^\[  FAILED  \] .*\.' "$out/$name.log" | sed 's/ (.*//' | sort -u | head -40 || true
  } >"$out/$name.summary"
  return $code
}

# count CODE: what run_one returned.
count() {
  case $1 in
    0) passed=$((passed + 1)) ;;
    77) skipped=$((skipped + 1)) ;;
    *) failed=$((failed + 1)) ;;
  esac
}

alone() {
  local code=0
  run_one "$@" || code=$?
  count $code
}

# The same beside what comes next.
later() {
  run_one "$@" &
  started+=($!)
}

left_out() {
  echo "$1: left out, $2" >"$out/$1.summary"
  count 77
}

# Waits for what was started, and adds its lines to the summary.
finish() {
  local job code
  for job in "${started[@]}"; do
    code=0
    wait "$job" || code=$?
    count $code
  done
  started=()
  cat "$out"/*.summary | tee -a "$out/summary.txt"
  rm -f "$out"/*.summary
}

part_tests() {
  local says='^\[  (PASSED|SKIPPED|FAILED) +\] [0-9]+ test' test
  for test in "${tests[@]}"; do later "$test" "$folder/$test" --gtest_filter="$filter"; done
  if [ -d "$source/demo" ]; then
    CALANDRA_DEMO_DIR=$source/demo later generate "$folder/calandra" generate --backend cuda --temperature 0 'What does "ancient" mean?'
  else
    left_out generate "there is no demo"
  fi
  finish
}

part_lossless() {
  local says='differences' model backend test
  for model in demo_qwen3_5 demo_bailing; do
    [ -d "$source/demo/${model/_/-}" ] || { left_out "losslessness.$model" "there is no demo/${model/_/-}"; continue; }
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
    [ -d "$source/demo/demo-$model" ] || { left_out "device_memory_test.$model" "there is no demo/demo-$model"; continue; }
    for backend in cuda cuda_fast; do
      CALANDRA_LOSSLESS_BACKEND=$backend alone "device_memory_test.$backend.$model" "$folder/device_memory_test" --gtest_filter="*/$model"
    done
  done
  finish
}

part_sanitize() {
  local says='ERROR SUMMARY|RACECHECK SUMMARY|^\[  (PASSED|SKIPPED) +\] [0-9]+ test' tool test model program watch
  program=$(command -v compute-sanitizer || true)
  if [ -n "${SANITIZER:-}" ]; then
    unpack "$SANITIZER" "$folder"
    program=$folder/sanitizer/compute-sanitizer
  elif [ -z "$program" ]; then
    left_out sanitize "there is no compute-sanitizer"
    finish
    return
  fi
  for tool in memcheck racecheck initcheck; do
    # Death tests fork, and what comes out of a fork cannot be watched. Refused allocations are tested on purpose.
    watch=("$program" --tool "$tool" --report-api-errors no --error-exitcode 9)
    for test in "${sanitized[@]}"; do
      later "$tool.$test" "${watch[@]}" "$folder/$test" --gtest_filter="$filter:-*Death*"
    done
    for model in qwen3_5 bailing; do
      [ -d "$source/demo/demo-$model" ] || { left_out "$tool.generate.$model" "there is no demo/demo-$model"; continue; }
      CALANDRA_DEMO_DIR=$source/demo later "$tool.generate.$model" "${watch[@]}" "$folder/calandra" generate --backend cuda \
        --speculative-config '{"method":"mtp"}' --temperature 0.8 --top-k 20 --max-tokens 6 "demo:$model" ancient
    done
  done
  later memcheck.cuda_parts_test "$program" --tool memcheck --report-api-errors no --error-exitcode 9 "$folder/cuda_parts_test" \
    --gtest_filter="-*Death*"
  finish
}

part_bench() {
  local part
  for part in latency throughput speculation startup ops; do "part_$part"; done
}

# bench NAME VERB ARGUMENT…: JSON lines in the log NAME.
bench() {
  local name=$1 verb=$2
  shift 2
  alone "$name" "$folder/calandra" bench "$verb" --backend cuda --json "$@"
}

part_latency() {
  local says='^{' shape batch sizes=(--input-len 512 --output-len 64 --max-num-batched-tokens 2048 --repetitions 2)
  for shape in $SHAPES; do
    for batch in 1 16 64; do
      bench "latency.$shape.$batch" latency --shape "$shape" --load-format dummy --batch-size $batch "${sizes[@]}"
      bench "latency.$shape.$batch.deterministic" latency --shape "$shape" --load-format dummy --batch-size $batch "${sizes[@]}" --deterministic
      bench "latency.$shape.$batch.fp8" latency --shape "$shape" --load-format dummy --batch-size $batch "${sizes[@]}" --hf-overrides "$fp8"
    done
  done
  finish
}

part_throughput() {
  local says='^{' shape sizes=(--num-prompts 32 --input-len 256 --output-len 64 --max-concurrency 1,16)
  for shape in $SHAPES; do
    bench "throughput.$shape" throughput --shape "$shape" --load-format dummy "${sizes[@]}" --no-async-scheduling
    bench "throughput.$shape.deterministic" throughput --shape "$shape" --load-format dummy "${sizes[@]}" --no-async-scheduling --deterministic
    bench "throughput.$shape.ahead" throughput --shape "$shape" --load-format dummy "${sizes[@]}" --async-scheduling
  done
  finish
}

# Drafts of the MTP layer against none, accepted as often as published reports say.
part_speculation() {
  local says='^{' shape
  for shape in $SHAPES; do
    bench "speculation.$shape" throughput --shape "$shape" --load-format dummy --compare-speculation \
      --speculative-config '{"method":"mtp","num_speculative_tokens":4}' --synthetic-acceptance 0.8,0.62,0.48,0.37 \
      --input-len 256 --output-len 64 --engines 2 --rounds 3 --max-concurrency 1,4
  done
  finish
}

# Twice, so that the second finds the files in memory.
part_startup() {
  local says='^{' shape time checkpoint
  for shape in $SHAPES; do
    if [ ! -d "$source/demo" ]; then
      left_out "startup.$shape" "there is no demo, whose tokenizer it takes"
      continue
    fi
    checkpoint=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "$folder")")
    CALANDRA_DEMO_DIR=$source/demo alone "checkpoint.$shape" "$folder/write_dummy_checkpoint" "$checkpoint/model" --shape "$shape"
    for time in first second; do bench "startup.$shape.$time" startup "$checkpoint/model"; done
    rm -rf "$checkpoint"
  done
  finish
}

part_ops() {
  local says='^{' shape
  for shape in $SHAPES; do bench "ops.$shape" ops --shape "$shape"; done
  finish
}

clean_up() {
  [ ${#links[@]} -eq 0 ] || rm -f "${links[@]}"
  rm -rf "$folder"
}

run() {
  local archive=$1 part
  LIMIT=${LIMIT:-240} SHAPES=${SHAPES:-qwen3_5-0.8b}
  out=$2 passed=0 skipped=0 failed=0 started=() links=()
  [ -f "$archive" ] || die "$archive is not there"
  shift 2
  [ $# -gt 0 ] || set -- tests lossless memory sanitize bench
  for part in "$@"; do declare -F "part_$part" >/dev/null || die "there is no part $part"; done
  check_machine
  folder=$(mktemp -d)
  trap clean_up EXIT
  unpack "$archive" "$folder"
  mkdir "$folder/data"
  [ -z "${DATA:-}" ] || unpack "$DATA" "$folder/data"
  source=$(cat "$folder/source_dir")
  link "$source" "$folder/data/repository" "$PWD"
  link "$(dirname "$source")/shared" "$folder/data/shared" "$PWD/shared" "$(dirname "$PWD")/shared"
  mkdir -p "$out"
  [ -d "$source/tests/oracle" ] || echo "there is no tests/oracle: run in a copy of the repository, or with DATA=FILE" | tee -a "$out/summary.txt"
  nvidia-smi >"$out/device.txt"
  for part in "$@"; do "part_$part"; done
  echo "$passed passed, $skipped skipped or left out, $failed failed" | tee -a "$out/summary.txt"
  [ $failed -eq 0 ] || return 1
  [ $skipped -eq 0 ] || return 77
}

case ${1:-} in
  pack) pack "$2" "$3" ;;
  data) shift; data "$@" ;;
  sanitizer) sanitizer "$2" ;;
  run) shift; run "$@" ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
