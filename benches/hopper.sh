#!/usr/bin/env bash
# A Hopper card: correct first, then beside PyTorch. About half an hour in all, with the program built.
#
#   benches/hopper.sh [PART..]        tests, step, scan, attention, products; all of them where none is named
#
# PYTHON has torch with CUDA (default python3); results go to FOLDER (default results/hopper). Build
# beforehand, where the toolkit or its runtime libraries are, or say where the programs lie by LONGBURN and SUITE:
#
#   cargo build --release --no-default-features --features flex,cuda-nvrtc
#   cargo test --release --no-default-features --features flex,cuda-nvrtc --test suite --no-run
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
folder=${FOLDER:-results/hopper}
longburn=${LONGBURN:-target/release/longburn}
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests step scan attention products)
mkdir -p "$folder"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$folder/card.txt"

# Names and arguments of a row; a row that takes too long is named in failed.txt, and the next one begins.
row() {
  local name=$1
  shift
  echo "== $name"
  local memory=(--no-memory)
  [ "$1" != matmul ] || memory=()
  timeout "${LIMIT:-180}" "$longburn" bench "$@" --device cuda --repeats 7 --ceiling-side 256 ${memory[@]+"${memory[@]}"} \
    --python "$python" --out "$folder/$name.json" 2>&1 | tee "$folder/$name.txt" ||
    echo "failed: $name" | tee -a "$folder/failed.txt"
}

tests() {
  local features=(--release --no-default-features --features flex,cuda-nvrtc)
  local run=(cargo test "${features[@]}" --test suite)
  [ -z "${SUITE:-}" ] || run=("$SUITE")
  [ -n "${SUITE:-}" ] && local rest=(--nocapture --test-threads 4) || local rest=(-- --nocapture --test-threads 4)
  "${run[@]}" backends::cuda "${rest[@]}" 2>&1 | tee "$folder/tests.txt"
}

# Every kernel of a step first, which takes seconds; PyTorch compiles its step for a minute.
step() {
  local small=(train-step --dtype bf16 --layers 12 --width 768 --heads 12 --inner 2048 --vocab 32000)
  local large=(train-step --dtype bf16 --layers 16 --width 2048 --heads 32 --kv-heads 8 --inner 8192 --vocab 32000)
  for size in "2048 --batch 4" "8192" "32768"; do
    local len=${size%% *}
    # shellcheck disable=SC2086
    row "step-130m-$len-profile" "${small[@]}" --len $size --profile "$folder/step-130m-$len.svg"
    # shellcheck disable=SC2086
    row "step-130m-$len" "${small[@]}" --len $size --peer torch
  done
  for len in 2048 8192 32768; do
    row "step-1b-$len" "${large[@]}" --len $len --strategy recompute --peer torch
  done
  row step-130m-longlora "${small[@]}" --len 32768 --mask longlora --peer torch-flex
  row step-130m-stride "${small[@]}" --len 32768 --mask stride --block 128 --peer torch-flex
}

scan() {
  row scan-ssd scan --kind ssd --len 4096 --width 1536 --states 128 --head-dim 64 --backward --peer torch
  row scan-selective scan --len 4096 --width 1536 --states 16 --backward --peer torch
}

attention() {
  local of=(attention --implementation hopper --dtype bf16 --batch 1 --heads 32 --kv-heads 8)
  for len in 16384 65536; do
    row "dense-128-$len" "${of[@]}" --head-dim 128 --len $len --peer torch
    row "dense-128-$len-backward" "${of[@]}" --head-dim 128 --len $len --backward --peer torch
    row "dense-64-$len" "${of[@]}" --head-dim 64 --len $len --peer torch
    row "dense-64-$len-backward" "${of[@]}" --head-dim 64 --len $len --backward --peer torch
    for wide in 192 256; do
      row "dense-$wide-$len" "${of[@]}" --head-dim $wide --len $len --peer torch
      row "dense-$wide-$len-backward" "${of[@]}" --head-dim $wide --len $len --backward --peer torch
    done
    local masks=("window --window 2048 --sinks 64" "documents --documents 2048" "longlora" "stride --block 128"
      "blocks --block 128 --density 0.1")
    for mask in "${masks[@]}"; do
      local name=${mask%% *}-$len
      # shellcheck disable=SC2086
      row "$name" "${of[@]}" --head-dim 128 --len $len --mask $mask --peer dense --peer torch-flex
      # shellcheck disable=SC2086
      row "$name-backward" "${of[@]}" --head-dim 128 --len $len --mask $mask --backward --peer dense --peer torch-flex
    done
  done
  row deterministic "${of[@]}" --head-dim 128 --len 16384 --backward --deterministic --peer torch
  local few=("${of[@]}" --head-dim 128 --len 16384 --mask blocks --block 128 --density 0.05 --peer dense)
  row blocks-few "${few[@]}"
  row blocks-few-backward "${few[@]}" --backward
}

products() {
  row product-8192 matmul --dtype bf16 --m 8192 --n 8192 --k 8192 --peer torch
}

for part in "${parts[@]}"; do
  case $part in
  tests | step | scan | attention | products) "$part" ;;
  *) echo "no part \`$part\`: tests, step, scan, attention, products" >&2 && exit 2 ;;
  esac
done
