#!/bin/sh
# TextVQA: soft accuracy on val.
#   bash scripts/llava_eval/textvqa.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=textvqa
. "$(dirname "$0")/benchmark.sh"
