#!/bin/sh
# Everything that only a GPU can show, in one run:
#
#   bench/gpu.sh [BUNDLE]            the bundle that ships, or another one: of the whole recipe, in 16 bits
#
# For the providers CUDA and, where its libraries are, TensorRT: posteriors against the CPU's, batches of 1 to 64 utterances
# of 4 s (utterances a second, p50 and p99, memory, share of a measured matrix product), the ensemble there and on the CPU;
# the same with recorded encoder passes (CUDA graphs); then 64 two-channel calls at the pace of speech through the daemon.
#
# Installs nothing. What must be there: a GPU whose driver knows CUDA 13; Python with medusa-rt[gpu,demo] and onnx, in which
# onnxruntime-gpu owns its folder alone (deploy/Dockerfile.gpu shows how); for TensorRT its libraries, version 10.
# PYTHON names another Python than .venv's.
#
# Exit status: 0; 1 where posteriors differ by more than they may; 2 where something is not there. Output is for docs/LOG.md.
set -u
cd "${0%/*}/.." || exit 2
PYTHON=${PYTHON:-.venv/bin/python}
BUNDLE=${1:-daemon/bundles/default}

missing() {
    echo "bench/gpu.sh: $1" >&2
    exit 2
}

command -v nvidia-smi > /dev/null 2>&1 || missing "no nvidia-smi, so no GPU here: run it on a machine with an NVIDIA GPU and its driver"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || missing "nvidia-smi finds no GPU: check the driver"
[ -x "$PYTHON" ] || missing "no Python at $PYTHON: make the environment, or name another with PYTHON=..."
[ -f "$BUNDLE/manifest.json" ] || missing "no bundle in $BUNDLE: name its folder"
"$PYTHON" -c 'import onnx' 2> /dev/null || missing "$PYTHON has no onnx: pip install --constraint constraints.txt onnx"
"$PYTHON" -c '
import sys
import ctranslate2
from model.onnx_session import ProviderError
from model.providers import settled
try:
    settled("cuda", ctranslate2.get_cuda_device_count())
except ProviderError as error:
    sys.exit(str(error))
' || missing "CUDA cannot be used: the line above says what is missing"

# float32 is float32 in TensorRT too, whose provider has no option for it.
export NVIDIA_TF32_OVERRIDE=0
status=0
measure() {
    echo "== $*"
    "$PYTHON" -m bench.device --bundle "$BUNDLE" "$@"
    found=$?
    [ "$found" -le "$status" ] || status=$found
}

measure --device cuda --parts parity sweep ensemble
measure --device cuda --parts parity sweep --batches 1 8 --graphs 1x4 8x4
if "$PYTHON" -c 'import ctypes; ctypes.CDLL("libnvinfer.so.10")' 2> /dev/null; then
    measure --device tensorrt --parts parity sweep ensemble
else
    echo "== tensorrt: left out, libnvinfer.so.10 is not in LD_LIBRARY_PATH"
fi
measure --device cuda --parts calls --calls 64
exit $status
