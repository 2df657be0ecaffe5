#!/bin/sh
# Server 3 of several that train one HQ-VAE together; variables: see server.sh beside this file.
#   sh scripts/vae_train/multi-server/train_hqvae_server3.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../../.." || exit 1
SERVER=3
. scripts/vae_train/multi-server/server.sh
