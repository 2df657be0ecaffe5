#!/bin/sh
# LLaVA-Bench (in the wild): answers, graded by a language model behind --grader.
#   bash scripts/llava_eval/llavabench.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=llavabench
. "$(dirname "$0")/benchmark.sh"
