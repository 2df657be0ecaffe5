#!/bin/sh
# Server 1 of several that tune one language model together; scripts/vae_train/multi-server/server.sh says which variables they need.
#   sh scripts/multi-server/finetune_lora_server1.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../.." || exit 1
SERVER=1 SCRIPT=scripts/finetune_lora.sh
. scripts/vae_train/multi-server/server.sh
