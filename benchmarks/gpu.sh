#!/bin/sh
# What a GPU shows, in one call: that the kernels work on it, what an update costs, and what ten minutes learn of enwik8.
#
#   sh benchmarks/gpu.sh kit    # first, here: packages for the GPU's machine and enwik8, in build/gpu
#   sh benchmarks/gpu.sh        # there, with build/gpu: results and weights come to $OUT
#
# The GPU's machine has Python 3.12 with JAX and PyTorch for CUDA. BUDGET: how long enwik8 trains.
set -e
cd "$(dirname "$0")/.."
KIT=build/gpu

if [ "$1" = kit ]; then
  rm -rf $KIT
  mkdir -p $KIT/data $KIT/site/tsm
  cp "${TSM_DATA:-../shared/data}/enwik8.xz" $KIT/data
  .venv/bin/pip install -q --target $KIT/site --python-version 3.12 --only-binary :all: --no-deps \
    array-api-compat jaxtyping wadler-lindig safetensors ml_dtypes filelock rensa rich markdown-it-py \
    mdurl pygments tensorboardX protobuf packaging jinja2 markupsafe
  du -sh $KIT
  exit
fi

OUT=${OUT:-build/gpu-out}
mkdir -p "$OUT" $KIT/site/tsm
for part in training export runtime; do ln -sfn "$PWD/$part" $KIT/site/tsm/$part; done
ln -sfn "$PWD/runtime/package/__init__.py" $KIT/site/tsm/__init__.py
export PYTHONPATH="$PWD/$KIT/site" TSM_DATA="$PWD/$KIT/data"

python - <<'KERNELS' 2>&1 | tee "$OUT/kernels.txt"
from tsm.training.kernels import gpu_scan
print({name: bool(gpu_scan(name)) for name in ("pallas_coupled", "triton_coupled")})
KERNELS

# What is measured first is kept if the time is up.
python benchmarks/training.py --rounds 1 2>&1 | tee "$OUT/training.txt" || true
cp benchmarks/training.jsonl "$OUT/" || true

python training/train.py --data enwik8 --preset enwik8 --engine jax --batch "${ROWS:-64}" \
  --budget "${BUDGET:-5m}" --patience 0 --out $KIT/run || true
cp $KIT/run/model.safetensors $KIT/run/model.json $KIT/run/metrics.jsonl "$OUT/" || true
