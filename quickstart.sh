#!/usr/bin/env bash
# From a bare checkout to a streamed answer: set up .venv, install SAGE, run `sage demo` with the arguments given.
# Run it again at any time: what is installed already is not installed again, and the demo starts in seconds.
#
#   ./quickstart.sh [DIR] [--exit] …     arguments of `sage demo`
#   ./quickstart.sh --install [EXTRA]    install only; EXTRA is an extra of pyproject.toml, `all` unless given
set -euo pipefail
cd "$(dirname "$0")"

venv=.venv
stamp=$venv/.quickstart-stamp
log=$venv/quickstart.log
apt_line="sudo apt-get install -y python3 python3-venv python3-dev g++"

extra=all
is_install_only=no
if [ "${1:-}" = --install ]; then
    extra=${2:-all}
    is_install_only=yes
fi

say() { printf 'quickstart: %s\n' "$*" >&2; }
die() { say "$1"; say "install it with:  $apt_line"; exit 1; }

check_tools() {
    command -v python3 >/dev/null || die "found no python3; expected Python 3.11 or newer"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "found $(python3 --version); expected Python 3.11 or newer"
    python3 -c 'import ensurepip, venv' 2>/dev/null || die "this python3 cannot make virtual environments"
    python3 -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        die "found no Python.h; the native part needs Python's C headers"
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        die "found no C++ compiler"
}

# What an installation depends on: changed, it is done again; unchanged, it is skipped.
fingerprint() {
    local python=python3
    [ ! -x "$venv/bin/python" ] || python=$venv/bin/python
    {
        "$python" --version
        pwd
        cat pyproject.toml configs/constraints.txt
        find native -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.h' -o -name 'CMakeLists.txt' \) -print0 |
            sort -z | xargs -0r cat
    } | sha256sum | cut -d ' ' -f 1
}

# The extra `dev` holds everything that `all` does.
is_installed() {
    local found
    [ -x "$venv/bin/sage" ] && found=$(cat "$stamp" 2>/dev/null) || return 1
    [ "$found" = "$wanted $extra" ] || { [ "$extra" = all ] && [ "$found" = "$wanted dev" ]; }
}

install() {
    say "installing SAGE into $venv (the first time takes a few minutes; details in $log)"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        --constraint configs/constraints.txt --editable ".[$extra]" 2>&1 |
        tee "$log" |
        awk '/^ *(Collecting|Downloading|Building|Installing|Successfully)/ {
                 line = substr($0, 1, 100); printf "  %s\n", line; fflush() }' >&2
    then
        tail -n 20 "$log" >&2
        say "the installation failed; the lines above are the end of $log"
        exit 1
    fi
}

wanted=$(fingerprint 2>/dev/null)
if ! is_installed; then
    check_tools
    install
    printf '%s %s\n' "$(fingerprint)" "$extra" >"$stamp"
fi
[ "$is_install_only" = no ] || exit 0
exec "$venv/bin/sage" demo "$@"
