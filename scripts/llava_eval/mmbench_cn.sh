#!/bin/sh
# MMBench in Chinese: the table for the submission server, and the score of the first letter on dev.
#   bash scripts/llava_eval/mmbench_cn.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=mmbench_cn
. "$(dirname "$0")/benchmark.sh"
