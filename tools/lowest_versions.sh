#!/usr/bin/env bash
# Installs the lowest versions that pyproject.toml allows into a fresh environment and runs the tests with them.
# Needs uv (https://docs.astral.sh/uv) on the path. Takes some minutes and several gigabytes, so CI does not run it.
#
#   tools/lowest_versions.sh [FOLDER [PYTEST ARGUMENT...]]      FOLDER keeps the environment; .venv-lowest by default
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-.venv-lowest}
shift || true
uv venv --quiet --clear --python 3.11 "$folder"
uv pip install --quiet --python "$folder/bin/python" --resolution lowest-direct -e '.[dev]'
uv pip list --python "$folder/bin/python" 2>/dev/null |
    grep -iE '^(torch|torchvision|timm|numpy|pillow|safetensors|scikit-learn|matplotlib|typer|rich|filelock|fastapi|peft|onnx|onnxruntime|onnxscript|datasets|hypothesis|pytest) '
"$folder/bin/python" -m pytest -n 2 "$@"
