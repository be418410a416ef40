#!/usr/bin/env bash
# The GPU's tests on a machine that has a driver and nothing else: no compiler, no build tree.
#   device_test.sh pack BUILD FILE   here: what the tests need of a build with CALANDRA_CUDA=ON, stripped, into FILE (.tar.xz)
#   device_test.sh run FILE OUT      there, in a copy of the repository: runs them, logs and a summary into OUT
# The exit status of `run` is that of the tests. A test that takes longer than its limit counts as failed.
set -euo pipefail

tests=(cuda_plugin_test cuda_test ops_test oracle_test bailing_oracle_test mtp_test vision_prompts_test demo_test)
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

run() {
  folder=$(mktemp -d) out=$2 LIMIT=${LIMIT:-240}
  tar -C "$folder" -xJf "$1" || python3 -m tarfile -e "$1" "$folder"
  mkdir -p "$out"
  local source failed=0 status=0
  source=$(cat "$folder/source_dir")
  if [ ! -e "$source" ]; then
    mkdir -p "$(dirname "$source")"
    ln -s "$PWD" "$source"
  fi
  nvidia-smi >"$out/device.txt" 2>&1 || true
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
  run) run "$2" "$3" ;;
  *) sed -n '2,5s/^# //p' "$0"; exit 2 ;;
esac
