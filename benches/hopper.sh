#!/usr/bin/env bash
# Attention on a Hopper card: correct first, then beside PyTorch. Minutes, with the program built.
#
#   benches/hopper.sh [PYTHON] [FOLDER]
#
# PYTHON has torch with CUDA (default python3); results go to FOLDER (default results/hopper). Build
# beforehand, where the toolkit or its runtime libraries are:
#
#   cargo build --release --no-default-features --features flex,cuda-nvrtc
#   cargo test --release --no-default-features --features flex,cuda-nvrtc --test suite --no-run
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
folder=${2:-results/hopper}
features=(--release --no-default-features --features flex,cuda-nvrtc)
mkdir -p "$folder"

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$folder/card.txt"
cargo test "${features[@]}" --test suite cuda::hopper -- --nocapture --test-threads 1 \
  2>&1 | tee "$folder/tests.txt"

row() {
  local name=$1
  shift
  echo "== $name"
  timeout 120 target/release/longburn bench attention --device cuda --implementation hopper --dtype bf16 \
    --batch 1 --heads 32 --kv-heads 8 --repeats 7 --no-memory --ceiling-side 256 --python "$python" \
    --out "$folder/$name.json" "$@" 2>&1 | tee "$folder/$name.txt" || echo "failed: $name" | tee -a "$folder/failed.txt"
}

for len in 16384 65536; do
  row "dense-128-$len" --head-dim 128 --len $len --peer torch
  row "dense-128-$len-backward" --head-dim 128 --len $len --backward --peer torch
done
row dense-64 --head-dim 64 --len 16384 --peer torch
row dense-64-backward --head-dim 64 --len 16384 --backward --peer torch
row deterministic --head-dim 128 --len 16384 --backward --deterministic --peer torch
masks=("window --window 2048 --sinks 64" "documents --documents 2048" "longlora" "stride --block 128" "blocks --block 128 --density 0.1")
for mask in "${masks[@]}"; do
  name=${mask%% *}
  # shellcheck disable=SC2086
  row "$name" --head-dim 128 --len 16384 --mask $mask --peer dense --peer torch-flex
  # shellcheck disable=SC2086
  row "$name-backward" --head-dim 128 --len 16384 --mask $mask --backward --peer dense --peer torch-flex
done
