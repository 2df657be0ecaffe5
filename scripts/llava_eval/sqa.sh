#!/bin/sh
# ScienceQA: accuracy, all questions and those with an image.
#   bash scripts/llava_eval/sqa.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=sqa
. "$(dirname "$0")/benchmark.sh"
