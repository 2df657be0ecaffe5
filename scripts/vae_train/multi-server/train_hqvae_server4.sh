#!/bin/sh
# Server 4 of several that train one HQ-VAE together; server.sh beside this file says which variables they need.
#   sh scripts/vae_train/multi-server/train_hqvae_server4.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../../.." || exit 1
SERVER=4
. scripts/vae_train/multi-server/server.sh
