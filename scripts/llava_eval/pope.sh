#!/bin/sh
# POPE, object hallucination: mean F1 of three kinds of questions.
#   bash scripts/llava_eval/pope.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=pope
. "$(dirname "$0")/benchmark.sh"
