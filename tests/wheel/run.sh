#!/usr/bin/env bash
# Build the wheel, install it in an empty environment, and test it with the source tree out of the way.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository="$PWD"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
echo "building the wheel …"
PATH="$repository/.venv/bin:$PATH" .venv/bin/pip wheel -q --no-build-isolation --no-deps -w "$work/dist" .
python3 -m venv "$work/gateway-host"
# A gateway host: no torch, no model. Then the whole one-host set without torch for an answer end to end.
"$work/gateway-host/bin/pip" install -q -c configs/constraints.txt "$(echo "$work"/dist/*.whl)[gateway,server,cli,operator]"
cp tests/wheel/check_wheel.py native/compiled/modules.txt "$work/"
cd "$work"
env -u PYTHONPATH "$work/gateway-host/bin/python" check_wheel.py

echo "testing the compiled modules …"
# The unit tests of the packages that have some, beside what they read, without the sources.
mkdir "$work/tree"
cp -r "$repository"/{tests,proto,docs,configs,pyproject.toml} "$work/tree/"
"$work/gateway-host/bin/pip" install -q -c "$repository/configs/constraints.txt" \
    pytest pytest-asyncio pytest-timeout hypothesis jsonschema msgpack openai psutil trustme
cd "$work/tree/tests/unit"
packages="$(sed -n 's#^[^\#].*/\(sage_[a-z_]*\)/.*#\1#p' "$work/modules.txt" | cut -d / -f 1 | sort -u)"
cd "$work/tree"
# shellcheck disable=SC2086
env -u PYTHONPATH "$work/gateway-host/bin/python" -m pytest -q -p no:cacheprovider \
    $(for package in $packages; do echo "tests/unit/$package"; done)
