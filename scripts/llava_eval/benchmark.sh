# Sourced by the scripts beside it, which set BENCHMARK: asks a model the questions of one benchmark and scores the answers, on all GPUs.
#   bash scripts/llava_eval/NAME.sh MODEL [BASE] [options of unicode.run.benchmark]
#   bash scripts/llava_eval/NAME.sh --answers ANSWERS.jsonl --out FOLDER          scores answers that are there, without a model
# MODEL      folder of a trained model; BASE the language model below it, where another one than it was trained on is meant
# DATA_ROOT  folder of the data sets; the benchmarks lie in DATA_ROOT/eval (EVALUATION.md; default: datasets/llava)
# OUT        folder of the results (default: MODEL/eval); --data and --out win over both
# The same command goes on where a stopped one was.
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
