#!/usr/bin/env bash
# The GPU's tests on a machine that has a driver and nothing else: no compiler, no build tree.
#   device_test.sh pack BUILD FILE   here: what the tests need of a build with CALANDRA_CUDA=ON, stripped, into FILE (.tar.xz)
#   device_test.sh sanitizer FILE    here: compute-sanitizer, by hash from the Python package index, into FILE (.tar.xz, 7 MB)
#   device_test.sh run FILE OUT      there, in a copy of the repository: runs them, logs and a summary into OUT
#   device_test.sh sanitize FILE SANITIZER OUT   there: the ops and the tiny models under memcheck, racecheck and initcheck
# The exit status of `run` and `sanitize` is that of the tests. A test that takes longer than its limit counts as failed.
set -euo pipefail

tests=(cuda_plugin_test cuda_test cuda_parts_test cuda_graph_test ops_test oracle_test bailing_oracle_test mtp_test vision_prompts_test demo_test)
# Of tests over several backends only the device's; the others ran where the build was made.
filter='*cuda*:*Cuda*'

pack() {
  local build=$1 folder
  folder=$(mktemp -d)
  for file in libcalandra_cuda.so calandra "${tests[@]}"; do
    [ -f "$build/bin/$file" ] || { echo "device_test.sh: $build/bin/$file is not built" >&2; exit 1; }
    strip -s -o "$folder/$file" "$build/bin/$file"
  done
  # Tests look for their data where the source was when they were built.
  sed -n 's/^CMAKE_HOME_DIRECTORY:INTERNAL=//p' "$build/CMakeCache.txt" >"$folder/source_dir"
  tar -C "$folder" -cJf "$2" .  # xz finds what the programs have in common
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

# One test's line of the summary, and the names of what failed.
run_one() {
  local test=$1 start=$SECONDS status=0
  timeout "$LIMIT" "$folder/$test" --gtest_filter="$filter" >"$out/$test.log" 2>&1 || status=$?
  local last
  last=$(grep -E '^\[  (PASSED|FAILED)  \] [0-9]+ test' "$out/$test.log" || tail -n 1 "$out/$test.log")
  {
    printf '%-22s status %3d  %4d s  %s\n' "$test" $status $((SECONDS - start)) "$(tr '\n' ' ' <<<"$last")"
    grep -E '^\[  FAILED  \] .*\.' "$out/$test.log" | sed 's/ (.*//' | sort -u | head -40 || true
  } >"$out/$test.summary"
  return $status
}

# Unpacks into $folder; logs go to $out.
unpack() {
  folder=$(mktemp -d) out=$2 LIMIT=${LIMIT:-240}
  tar -C "$folder" -xJf "$1" || python3 -m tarfile -e "$1" "$folder"
  mkdir -p "$out"
  local source
  source=$(cat "$folder/source_dir")
  if [ ! -e "$source" ]; then
    mkdir -p "$(dirname "$source")"
    ln -s "$PWD" "$source"
  fi
  nvidia-smi >"$out/device.txt" 2>&1 || true
}

sanitize_one() {
  local tool=$1 test=$2 start=$SECONDS status=0
  local log=$out/$tool.$test.log
  # Death tests fork, and what comes out of a fork cannot be watched. Refused allocations are tested on purpose.
  timeout "$LIMIT" "$folder/sanitizer/compute-sanitizer" --tool "$tool" --report-api-errors no --error-exitcode 9 \
    "$folder/$test" --gtest_filter="$filter:-*Death*" >"$log" 2>&1 || status=$?
  printf '%-10s %-22s status %3d  %4d s  %s\n' "$tool" "$test" $status $((SECONDS - start)) \
    "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|^\[  PASSED' "$log" | tr '\n' ' ')" >"$log.summary"
  return $status
}

sanitize() {
  unpack "$1" "$3"
  tar -C "$folder" -xJf "$2"
  local failed=0 test tool
  for tool in memcheck racecheck initcheck; do
    for test in cuda_test cuda_parts_test ops_test oracle_test bailing_oracle_test mtp_test; do sanitize_one $tool $test & done
  done
  for job in $(jobs -p); do wait "$job" || failed=1; done
  cat "$out"/*.log.summary | tee "$out/summary.txt"
  rm -rf "$out"/*.log.summary "$folder"
  return $failed
}

run() {
  unpack "$1" "$2"
  local failed=0 status=0
  for test in "${tests[@]}"; do run_one "$test" & done
  for job in $(jobs -p); do wait "$job" || failed=1; done
  for test in "${tests[@]}"; do cat "$out/$test.summary"; done | tee "$out/summary.txt"
  CALANDRA_DEMO_DIR=$PWD/demo timeout 60 "$folder/calandra" generate --backend cuda --temperature 0 \
    'What does "ancient" mean?' >"$out/generate.log" 2>&1 || status=$?
  [ $status -eq 0 ] || failed=1
  printf '%-22s status %3d\n' generate $status | tee -a "$out/summary.txt"
  head -c 600 "$out/generate.log"
  rm -f "$out"/*.summary
  rm -rf "$folder"
  return $failed
}

case ${1:-} in
  pack) pack "$2" "$3" ;;
  sanitizer) sanitizer "$2" ;;
  run) run "$2" "$3" ;;
  sanitize) sanitize "$2" "$3" "$4" ;;
  *) sed -n '2,7s/^# //p' "$0"; exit 2 ;;
esac
