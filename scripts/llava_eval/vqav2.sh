#!/bin/sh
# VQAv2: the file for the test server, or the score on val (--split val).
#   bash scripts/llava_eval/vqav2.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=vqav2
. "$(dirname "$0")/benchmark.sh"
