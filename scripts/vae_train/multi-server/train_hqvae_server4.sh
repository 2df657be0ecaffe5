#!/bin/sh
# Server 4 of several that train one HQ-VAE together; variables: see server.sh beside this file.
#   sh scripts/vae_train/multi-server/train_hqvae_server4.sh [CONFIG.yaml] [key.sub=value ...]
cd "$(dirname "$0")/../../.." || exit 1
SERVER=4
. scripts/vae_train/multi-server/server.sh
