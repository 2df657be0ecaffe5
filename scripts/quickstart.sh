#!/usr/bin/env bash
# From a bare clone to a trained image tokenizer on generated data, CPU only: environment, a small language model, its embedding table,
# an HQ-VAE on the rows of that table, measures and pictures of held-out scenes. What is whole already is not made again.
#   bash scripts/quickstart.sh [FOLDER]
set -e
cd "$(dirname "$0")/.."
. scripts/environment.sh
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH
out=${1:-outputs/quickstart}

# Shows the command after the file $1 that it makes and runs it, unless that file is there.
step() {
    made=$1
    shift
    if [ -e "$made" ]; then
        printf '\n== %s is there; remove it to run this again:\n   %s\n' "$made" "$*"
    else
        printf '\n== %s\n' "$*"
        "$@"
    fi
}

step "$out/base/base.json" python -m unicode.run.make_base_model --out "$out/base"
step "$out/table.safetensors" python -m unicode.run.export_codebook --model "$out/base" --out "$out/table.safetensors"
step "$out/reconstruction/metrics.json" python -m unicode.run.train_tokenizer configs/tokenizer/hqvae_shapes.yaml \
    model.codebook.table="$out/table.safetensors" run.dir="$out/hqvae"
step "$out/reconstruction/metrics.json" python -m unicode.run.eval_tokenizer --ckpt "$out/hqvae" --images shapes:val \
    --out "$out/reconstruction/metrics.json" --limit 1000

printf '\nmeasures: %s\npictures, scenes above their reconstructions: %s\n' "$out/reconstruction/metrics.json" "$out/reconstruction/grid.png"
