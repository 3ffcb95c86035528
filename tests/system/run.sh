#!/usr/bin/env bash
# Build all images, bring the stack of deploy/compose up, test it from outside, and leave nothing behind: `make system`.
# What was found is written to loadtests/results/system.{json,md}. Where no engine can run, it says so and is skipped.
#
#   KEEP=1 tests/system/run.sh     keeps our engine's images and build cache for a next run
#   BUILD_NETWORK=host             lets the build use the host's network
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$PWD/build/system
say() { printf 'system: %s\n' "$*" >&2; }
. tests/system/engine.sh

export COMPOSE_PROJECT_NAME=sage-system TAG=system-test SECRETS_DIR=$work/secrets GATEWAY_PORT=0 NATS_PORT=0 PROMETHEUS_PORT=0
export TESTCONTAINERS_RYUK_DISABLED=true COMPOSE_PROGRESS=plain
wheels=deploy/compose/wheels
our_wheel=
compose() { docker compose --project-directory deploy/compose -f deploy/compose/compose.yaml "$@"; }

clean_up() {
    local code=$?
    set +e
    trap - EXIT
    if [ -n "$engine_origin" ]; then
        say "cleaning up …"
        # An engine that was there before keeps its own images; ours all bear the tag of this test.
        compose --profile tools --profile observability down --volumes --timeout 5 >/dev/null 2>&1
        if [ -z "$engine_socket" ]; then
            # By name: the same image may bear another tag, which is not ours.
            docker image ls --filter "reference=sage/*:$TAG" --format '{{.Repository}}:{{.Tag}}' |
                xargs -r docker image rm >/dev/null
            [ "$base_origin" != "made with debootstrap" ] || docker image rm "$base_image" >/dev/null
        fi
    fi
    engine_stop
    [ -z "$our_wheel" ] || rm -f "$our_wheel"
    rm -rf "$work/secrets" "$work/data" "$work/base" "$work/pip.conf"
    exit "$code"
}

skip() {
    say "SKIPPED, nothing was tested: $1"
    exit 0
}

# pip's configuration as the build needs it: the indexes that this machine uses, without the folders that only it has.
write_pip_conf() {
    local key value kept word
    echo '[global]'
    for key in index-url extra-index-url trusted-host proxy timeout; do
        value=$(.venv/bin/python -m pip config get ":env:.$key" 2>/dev/null ||
            .venv/bin/python -m pip config get "global.$key" 2>/dev/null) || continue
        kept=
        for word in $value; do
            case $word in file:* | /*) ;; *) kept+=" $word" ;; esac
        done
        [ -z "$kept" ] || echo "$key =$kept"
    done
    [ -z "${CA_BUNDLE_SECRET:-}" ] || echo 'cert = /run/secrets/ca_bundle'
}

# The torch that this machine's pip chooses may come from a folder that the build does not see.
fetch_torch() {
    ls "$wheels"/torch-*.whl >/dev/null 2>&1 && return
    say "fetching torch …"
    .venv/bin/python -m pip download -q --no-deps --only-binary :all: --python-version 3.11 \
        -c configs/constraints.txt -d "$wheels" torch
    our_wheel=$(ls "$wheels"/torch-*.whl)
}

mkdir -p "$work"
trap clean_up EXIT
built="build of all images"
[ ! -d "$work/engine" ] || built+=", layers kept from an earlier run"
started=$SECONDS
engine_start || skip "$engine_reason"
base_image=${BASE_IMAGE:-debian:bookworm-slim}
engine_import_base "$base_image" || skip "$engine_reason"
seconds_engine=$((SECONDS - started))

for bundle in "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt; do
    [ ! -s "$bundle" ] || { export CA_BUNDLE_SECRET=$bundle; break; }
done
fetch_torch
write_pip_conf >"$work/pip.conf"
export PIP_CONF_SECRET=$work/pip.conf

say "building the images …"
started=$SECONDS
compose build >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; say "the build failed"; exit 1; }
seconds_build=$((SECONDS - started))

# Compose names Prometheus' own image. Where no registry gives it, Debian's Prometheus runs under a name of its own.
prometheus=$(compose --profile observability config --images | grep prometheus)
if ! timeout 60 docker pull -q "$prometheus" >"$work/pull.log" 2>&1; then
    export PROMETHEUS_IMAGE=sage/prometheus-of-debian:$TAG
    say "no registry gives $prometheus; building one of Debian's package …"
    docker build -q --build-arg "BASE_IMAGE=$base_image" -t "$PROMETHEUS_IMAGE" - \
        <tests/system/Dockerfile.prometheus >"$work/build-prometheus.log" 2>&1 ||
        { tail -n 20 "$work/build-prometheus.log" >&2; say "the build of Prometheus failed"; exit 1; }
    prometheus=$PROMETHEUS_IMAGE
fi

say "making credentials …"
rm -rf "$SECRETS_DIR"
deploy/compose/prepare.sh

say "testing …"
SYSTEM_STACK=1 .venv/bin/python -m pytest -v tests/system --junitxml "$work/junit.xml"
.venv/bin/python tests/system/report.py "$work/junit.xml" "engine=$engine_origin" "base=$base_image, $base_origin" \
    "prometheus=$prometheus" "seconds_engine=$seconds_engine" "built=$built" "seconds_build=$seconds_build"
