# Sourced by the scripts beside it, which set BENCHMARK: runs one benchmark with a model and scores its answers, on all GPUs.
#   bash scripts/llava_eval/NAME.sh MODEL [BASE] [options of unicode.run.benchmark]
#   bash scripts/llava_eval/NAME.sh --answers ANSWERS.jsonl --out FOLDER          scores existing answers, without a model
# MODEL      folder of a trained model; BASE its base model, if it has moved since the training
# DATA_ROOT  folder of the data sets; the benchmarks are in DATA_ROOT/eval (EVALUATION.md; default: datasets/llava)
# OUT        folder of the results (default: MODEL/eval); the options --data and --out come first
# The same command resumes.
cd "$(dirname "$0")/../.." || exit 1
. scripts/launch.sh
model='' base=''
case ${1---} in -*) ;; *) model=$1 && shift ;; esac
case ${1---} in -*) ;; *) base=$1 && shift ;; esac
if [ -z "$model" ] && [ $# = 0 ]; then
    echo "error: no model; give its folder: bash scripts/llava_eval/$BENCHMARK.sh outputs/unicode" >&2
    exit 2
fi
if [ -n "$base" ]; then set -- --base "$base" "$@"; fi
if [ -n "$model" ]; then set -- --model "$model" "$@"; fi
launch unicode.run.benchmark "$BENCHMARK" --data "${DATA_ROOT:-datasets/llava}/eval" --out "${OUT:-${model:-outputs}/eval}" "$@"
