#!/usr/bin/env bash
# Measures tokenizer training on one GPU. Written on a machine without one: its parts were run on a CPU at small sizes, never as a whole on a card.
#   bash tests/bench/gpu_tokenizer.sh                        everything, some 30 minutes
#   bash tests/bench/gpu_tokenizer.sh step                   the 256 px HQ-VAE's training step: bf16, compiled, channels last, and plain float32
#   bash tests/bench/gpu_tokenizer.sh free frozen ...        five minutes of training in each of these codebook modes on Tux Paint's stamps
# DEVICE (cuda), DURATION (300 seconds a mode), BATCH (64 images), STAMPS (folder of pictures), TABLE (embedding table, see
# unicode.run.export_codebook), OUT (outputs/gpu_tokenizer). More settings for the training runs: EXTRA_SETTINGS="a.b=c d.e=f".
set -e
cd "$(dirname "$0")/../.."
. scripts/environment.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
device=${DEVICE:-cuda} duration=${DURATION:-300} batch=${BATCH:-64} out=${OUT:-outputs/gpu_tokenizer}
stamps=${STAMPS:-/usr/share/tuxpaint/stamps} table=${TABLE:-outputs/tables/smollm2.safetensors}
config=configs/tokenizer/hqvae_stamps.yaml

# Prints the last value of the key $2 in the metrics of the run folder $1.
last() {
    "$PYTHON" - "$1/metrics.jsonl" "$2" <<'EOF'
import json, sys
print([line[sys.argv[2]] for line in map(json.loads, open(sys.argv[1])) if sys.argv[2] in line][-1])
EOF
}

# Trains mode $1 for $2 steps in the folder $3, quietly.
train() {
    entropy=0
    if [ "$1" = projected ]; then entropy=0.05; fi
    # shellcheck disable=SC2086  # EXTRA_SETTINGS is a list of words
    "$PYTHON" -m unicode.run.train_tokenizer "$config" model.codebook.mode="$1" model.codebook.table="$table" model.codebook.width=0 \
        model.codebook.entropy_weight="$entropy" data.root="$stamps" train.batch_size="$batch" train.steps="$2" train.eval_every=0 \
        train.save_every=0 train.log_every=50 train.num_workers="${WORKERS:-8}" run.device="$device" run.dir="$3" $EXTRA_SETTINGS 2>"$3.log" ||
        { tail -n 5 "$3.log" >&2; exit 1; }
}

measure_step() {
    for switches in "--precision bf16 --compile --channels-last" "--precision float32"; do
        # shellcheck disable=SC2086  # a list of words
        "$PYTHON" tests/bench/train_step.py --config configs/tokenizer/hqvae_llava_concat.yaml --device "$device" --batch "$batch" --steps 20 \
            --rows 32000 --table-width 4096 $switches
    done
}

# A first run of 150 steps says how many steps fill the time.
measure_mode() {
    folder=$out/$1
    rm -rf "$folder" "$folder.pace"
    train "$1" 150 "$folder.pace"
    steps=$("$PYTHON" -c "print(max(200, int($(last "$folder.pace" images_per_second) * $duration / $batch)))")
    train "$1" "$steps" "$folder"
    printf '%-10s %6d steps  %8.1f images/s  PSNR %.2f dB  usage %.3f coarse %.3f fine  perplexity %.0f coarse %.0f fine\n' "$1" "$steps" \
        "$(last "$folder" images_per_second)" "$(last "$folder" val_psnr)" "$(last "$folder" usage_0)" "$(last "$folder" usage_1)" \
        "$(last "$folder" perplexity_0)" "$(last "$folder" perplexity_1)"
}

mkdir -p "$out"
if [ $# -eq 0 ]; then set -- step free frozen language projected; fi
for what in "$@"; do
    if [ "$what" = step ]; then measure_step; else measure_mode "$what"; fi
done
