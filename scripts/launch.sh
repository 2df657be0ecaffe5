# Sourced by the training and encoding scripts, from the root of the repository. Defines
#   launch MODULE ARGS...
# which replaces the shell by `python -m MODULE ARGS...`, one process for each visible GPU (CUDA_VISIBLE_DEVICES).
#   no GPU                     one process on the CPU, or NUM_RANKS of them
#   several machines           set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT; start the script once on each

. scripts/environment.sh

launch() {
    num_gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())') || exit 1
    if [ "$num_gpus" -gt 0 ]; then
        ranks=$num_gpus
    else
        ranks=${NUM_RANKS:-1}
        export DS_ACCELERATOR=cpu ACCELERATE_USE_CPU=true
    fi
    if [ "$ranks" -gt 1 ] && { [ "$num_gpus" -eq 0 ] || [ "${NNODES:-1}" -gt 1 ]; }; then
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # torchrun sets the same with a message
    fi
    # Hide warnings that only the authors of a library can act on.
    export PYTHONWARNINGS="${PYTHONWARNINGS-ignore::FutureWarning,ignore::DeprecationWarning,ignore::UserWarning}"
    if [ "${NNODES:-1}" -gt 1 ]; then
        exec "$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" \
            --master-port "$MASTER_PORT" --nproc-per-node "$ranks" --module "$@"
    elif [ "$ranks" -gt 1 ] && [ "$num_gpus" -gt 0 ]; then
        exec "$PYTHON" -m deepspeed.launcher.runner --quiet --no_local_rank --master_port "${MASTER_PORT:-29500}" --module "$@"
    elif [ "$ranks" -gt 1 ]; then
        exec "$PYTHON" -m deepspeed.launcher.runner --quiet --num_accelerators "$ranks" --no_local_rank --master_port "${MASTER_PORT:-29500}" --module "$@"
    else
        exec "$PYTHON" -m "$@"
    fi
}
