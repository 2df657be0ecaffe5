# Sourced by the scripts of single servers with SERVER=1..4 set: checks the variables that connect the servers, then trains.
#   MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 NNODES=2 NCCL_SOCKET_IFNAME=eth0 sh .../train_hqvae_server1.sh [CONFIG.yaml] [key.sub=value ...]
# Give every server the same values and arguments; server 1 is the one at MASTER_ADDR.
# SCRIPT names what each server runs (default: scripts/vae_train/train_hqvae.sh).

script=${SCRIPT:-scripts/vae_train/train_hqvae.sh}

fail() {
    echo "error: $1" >&2
    exit 2
}

[ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR is not set; give every server the address of server 1: MASTER_ADDR=10.0.0.1"
[ -n "${MASTER_PORT:-}" ] || fail "MASTER_PORT is not set; give every server the same free port of server 1: MASTER_PORT=29500"
[ -n "${NNODES:-}" ] || fail "NNODES is not set; give every server the number of servers: NNODES=2"
case $NNODES in
    2 | 3 | 4) ;;
    *) fail "NNODES=$NNODES, expected 2, 3 or 4; for one server there is $script" ;;
esac
[ "$SERVER" -le "$NNODES" ] || fail "this is the script of server $SERVER but NNODES=$NNODES; start the scripts of servers 1 to $NNODES"
interface=${NCCL_SOCKET_IFNAME:-${GLOO_SOCKET_IFNAME:-}}
[ -n "$interface" ] || fail "NCCL_SOCKET_IFNAME is not set; name the network interface towards the other servers (ip -brief address): eth0"
export MASTER_ADDR MASTER_PORT NNODES NODE_RANK=$((SERVER - 1))
export NCCL_SOCKET_IFNAME="$interface" GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"
exec sh "$script" "$@"
