#!/bin/sh
# Server 2 of several that tune one language model together; variables: see scripts/vae_train/multi-server/server.sh.
#   sh scripts/multi-server/finetune_lora_server2.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../.." || exit 1
SERVER=2 SCRIPT=scripts/finetune_lora.sh
. scripts/vae_train/multi-server/server.sh
