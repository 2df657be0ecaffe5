#!/bin/sh
# Trains a code decoder, a language model that writes the ids of images, on all GPUs of this machine, or on the CPU. The same command resumes.
#   sh scripts/vae_train/train_hqvae_stage2.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../.." || exit 1
. scripts/launch.sh
case ${1:-} in
    *.yaml | *.yml) ;;
    *) set -- configs/llm/code_decoder.yaml "$@" ;;
esac
launch unicode.run.train_llm "$@"
