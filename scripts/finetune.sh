#!/bin/sh
# Tunes a whole language model that reads images as ids, on all GPUs of this machine or on the CPU. The same command resumes a run.
#   bash scripts/finetune.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/.." || exit 1
. scripts/launch.sh
case ${1:-} in
    *.yaml | *.yml) ;;
    *) set -- configs/llm/unicode_full.yaml "$@" ;;
esac
launch unicode.run.train_llm "$@"
