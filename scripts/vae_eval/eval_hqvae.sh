#!/bin/sh
# Measures a tokenizer on all GPUs of this machine, or on the CPU: CKPT/eval/DATASET/metrics.json and grid.png (EVALUATION.md).
#   sh scripts/vae_eval/eval_hqvae.sh CKPT_NAME DATASET [VAE_TYPE] [options and KEY=VALUE settings of unicode.run.eval_tokenizer]
# The three may also come from the environment; arguments win.
# CKPT_NAME   folder of a tokenizer, as it is or below outputs/
# DATASET     shapes, llava_v1, imagenet, ...: the validation split of configs/tokenizer/VAE_TYPE_DATASET.yaml;
#             or a folder, a list (.txt), a LLaVA file (.json), tar shards, shapes:SPLIT
# VAE_TYPE    hqvae (default) or rqvae; a tokenizer of the other type is refused
cd "$(dirname "$0")/../.." || exit 1
case ${1--} in -* | *=*) ;; *) CKPT_NAME=$1 && shift ;; esac
case ${1--} in -* | *=*) ;; *) DATASET=$1 && shift ;; esac
case ${1--} in hqvae | rqvae) VAE_TYPE=$1 && shift ;; esac
: "${CKPT_NAME:?is missing; give the folder of a tokenizer: sh scripts/vae_eval/eval_hqvae.sh outputs/hqvae_shapes shapes}"
: "${DATASET:?is missing; give a data set: sh scripts/vae_eval/eval_hqvae.sh $CKPT_NAME shapes, or a folder of images}"
type=${VAE_TYPE:-hqvae} ckpt=$CKPT_NAME
if [ ! -d "$ckpt" ]; then ckpt=outputs/$CKPT_NAME; fi
config=configs/tokenizer/${type}_$DATASET.yaml
if [ -e "$config" ]; then set -- --data "$config" "$@"; else set -- --images "$DATASET" "$@"; fi
out=$ckpt/eval/$(printf %s "$DATASET" | tr -c '[:alnum:]._-' _)/metrics.json
. scripts/launch.sh
launch unicode.run.eval_tokenizer --ckpt "$ckpt" --type "$type" --out "$out" "$@"
