#!/bin/sh
# Trains an RQ-VAE on all GPUs of this machine, or on the CPU. The same command resumes a stopped run.
#   sh scripts/vae_train/train_rqvae.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../.." || exit 1
. scripts/launch.sh
case ${1:-} in
    *.yaml | *.yml) ;;
    *) set -- configs/tokenizer/rqvae_llava_concat.yaml "$@" ;;
esac
launch unicode.run.train_tokenizer "$@"
