#!/bin/sh
# What a GPU shows, in two calls of ten minutes at most.
#
#   sh benchmarks/gpu.sh kit        # first, here: packages for the GPU's machine and enwik8, in build/gpu
#   sh benchmarks/gpu.sh measure    # there, with build/gpu: that the kernels work, and what an update costs
#   sh benchmarks/gpu.sh train      # enwik8, for BUDGET (default: 5m)
#
# The GPU's machine has Python 3.12 with JAX and PyTorch for CUDA. What is to be kept comes to $OUT.
set -e
cd "$(dirname "$0")/.."
KIT=build/gpu
OUT=${OUT:-build/gpu-out}
export PYTHONPATH="$PWD/$KIT/site" TSM_DATA="$PWD/$KIT/data"

# Weights that were cut short still come back.
keep() { for file; do [ ! -e "$file" ] || cp "$file" "$OUT"; done; }

case $1 in
kit)
  rm -rf $KIT
  mkdir -p $KIT/data $KIT/site
  cp "${CORPORA:-../shared/data}/enwik8.xz" $KIT/data
  .venv/bin/pip install -q --target $KIT/site --python-version 3.12 --only-binary :all: --no-deps \
    array-api-compat jaxtyping wadler-lindig safetensors ml_dtypes filelock rensa rich markdown-it-py \
    mdurl pygments tensorboardX protobuf packaging jinja2 markupsafe
  ;;
measure | train)
  mkdir -p "$OUT" $KIT/site/tsm
  for part in training export runtime; do ln -sfn "$PWD/$part" $KIT/site/tsm/$part; done
  ln -sfn "$PWD/runtime/package/__init__.py" $KIT/site/tsm/__init__.py
  ;;
esac

case $1 in
measure)
  python -c '
from tsm.training.kernels import gpu_scan
print({name: bool(gpu_scan(name)) for name in ("pallas_coupled", "triton_coupled")})'
  python benchmarks/training.py --rounds 1 || echo "training.py: exit code $?"
  keep benchmarks/training.jsonl
  ;;
train)
  python training/train.py --data enwik8 --preset enwik8 --engine jax --batch "${ROWS:-64}" \
    --budget "${BUDGET:-5m}" --patience 0 --out $KIT/run || echo "train: exit code $?"
  keep $KIT/run/model.safetensors $KIT/run/model.json $KIT/run/metrics.jsonl
  ;;
kit) ;;
*)
  echo "gpu.sh: found '$1', wanted kit, measure or train" >&2
  exit 2
  ;;
esac
