#!/usr/bin/env bash
# Make what the stack must not share: one nkey seed per role, the nats-server's configuration with their rights, and a
# first API key. Run it again at any time: what is there is kept. Needs Docker alone; SAGE runs in its own image.
#
#   ./prepare.sh        everything lands in $SECRETS_DIR (./secrets), which only you can enter
set -euo pipefail
cd "$(dirname "$0")"

secrets=$(realpath -m "${SECRETS_DIR:-./secrets}")
image=sage/cli:${TAG:-local}
say() { printf 'prepare: %s\n' "$*" >&2; }

# A container reads its secret as the user that owns the file. Root hands the files to the images' own user; anyone else
# lets the containers run as oneself, which .env keeps for every later `docker compose`.
if [ "$(id -u)" = 0 ]; then
    uid=${CONTAINER_UID:-10001} gid=${CONTAINER_GID:-10001}
else
    uid=${CONTAINER_UID:-$(id -u)} gid=${CONTAINER_GID:-$(id -g)}
    grep -qs '^CONTAINER_UID=' .env || printf 'CONTAINER_UID=%s\nCONTAINER_GID=%s\n' "$uid" "$gid" >>.env
fi

umask 077
mkdir -p "$secrets/api-keys"
[ "$(id -u)" != 0 ] || chown "$uid:$gid" "$secrets" "$secrets/api-keys"

docker image inspect "$image" >/dev/null 2>&1 || docker compose build provision
sage() {
    docker run --rm --network none --read-only --tmpfs /tmp --tmpfs /var/lib/sage --user "$uid:$gid" \
        --volume "$secrets:/secrets" "$image" "$@"
}

sage nats credentials /secrets
sage nats config --store-dir /data --host 0.0.0.0 --port 4222 --monitor-port 8222 --server-name sage \
    --users /secrets/users.json >"$secrets/nats.conf.new"
chmod 644 "$secrets/nats.conf.new"  # public keys alone; read by the server's user
mv "$secrets/nats.conf.new" "$secrets/nats.conf"

if [ ! -e "$secrets/api-keys/keys.toml" ]; then
    sage keys create --name first --file /secrets/api-keys/keys.toml --json >"$secrets/first-key.json"
    say "made an API key; it is in $secrets/first-key.json"
fi
say "ready: docker compose up -d"
