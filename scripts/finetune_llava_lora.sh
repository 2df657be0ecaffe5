#!/bin/sh
# Tunes the LLaVA baseline by LoRA after scripts/pretrain_llava.sh, on all GPUs of this machine or on the CPU. The same command resumes a run.
#   bash scripts/finetune_llava_lora.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/.." || exit 1
. scripts/launch.sh
case ${1:-} in
    *.yaml | *.yml) ;;
    *) set -- configs/llm/llava_lora.yaml "$@" ;;
esac
launch unicode.run.train_llm "$@"
