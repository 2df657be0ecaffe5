#!/bin/sh
# LLaVA-Bench (in the wild): answers, judged by a language model behind --judge.
#   bash scripts/llava_eval/llavabench.sh MODEL [BASE] [options]; see benchmark.sh beside this file
BENCHMARK=llavabench
. "$(dirname "$0")/benchmark.sh"
