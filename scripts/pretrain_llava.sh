#!/bin/sh
# Trains the projector of the LLaVA baseline, on all GPUs of this machine or on the CPU. The same command resumes a run.
#   bash scripts/pretrain_llava.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/.." || exit 1
. scripts/launch.sh
case ${1:-} in
    *.yaml | *.yml) ;;
    *) set -- configs/llm/llava_pretrain.yaml "$@" ;;
esac
launch unicode.run.train_llm "$@"
