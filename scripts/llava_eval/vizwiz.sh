#!/bin/sh
# VizWiz: the file for the test server, or the score on val (--split val).
#   bash scripts/llava_eval/vizwiz.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=vizwiz
. "$(dirname "$0")/benchmark.sh"
