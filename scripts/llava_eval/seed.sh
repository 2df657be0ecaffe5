#!/bin/sh
# SEED-Bench: accuracy, all questions, images only, videos only.
#   bash scripts/llava_eval/seed.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=seed
. "$(dirname "$0")/benchmark.sh"
