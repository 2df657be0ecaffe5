#!/bin/sh
# GQA: accuracy on the balanced test-dev questions.
#   bash scripts/llava_eval/gqa.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=gqa
. "$(dirname "$0")/benchmark.sh"
