#!/bin/sh
# Draws images with a tuned model on all GPUs of this machine or on the CPU: OUT/pictures, results.jsonl, contact_sheet.png, wall.png.
#   bash scripts/generate_images.sh MODEL PROMPTS OUT [KEY=VALUE ...] [options of unicode.run.generate_images]
# PROMPTS   a file (.txt, .jsonl, LLaVA .json), shapes:val, unconditional:100,
#           or a protocol of configs/generation: shapes, imagenet, cc3m, lsun_cat, lsun_church, lsun_bedroom
# The same command resumes. With a protocol the images are measured too.
cd "$(dirname "$0")/.." || exit 1
. scripts/launch.sh
model=${1:?is missing; give a model, prompts and a folder: bash scripts/generate_images.sh outputs/unicode_visual_text shapes:val outputs/drawn}
prompts=${2:?is missing; give a file of prompts, shapes:val, or the name of a protocol of configs/generation}
out=${3:?is missing; give the folder that the pictures go to}
shift 3
config=configs/generation/$prompts.yaml
if [ ! -e "$config" ]; then launch unicode.run.generate_images --model "$model" --prompts "$prompts" --out "$out" "$@"; fi
(launch unicode.run.generate_images --model "$model" --config "$config" --out "$out" "$@") || exit
for word do # the measures take the settings, not the options
    shift
    case $word in --*) ;; *=*) set -- "$@" "$word" ;; esac
done
launch unicode.run.eval_generation --pictures "$out" --config "$config" "$@"
