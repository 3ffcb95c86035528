#!/usr/bin/env bash
# Index the PostgreSQL 15 manual (over 1,100 HTML pages, as Debian packages it) and score twenty written questions.
# Usage: run.sh [DIR]   DIR: a folder that already holds the manual's .html files.
set -euo pipefail
cd "$(dirname "$0")/../.."
docs="${1:-}"
if [ -z "$docs" ]; then
    cache="${XDG_CACHE_HOME:-$HOME/.cache}/sage/corpora/postgresql-doc-15"
    docs="$cache/usr/share/doc/postgresql-doc-15/html"
    if [ ! -d "$docs" ]; then
        echo "downloading Debian's postgresql-doc-15 …" >&2
        mkdir -p "$cache"
        work="$(mktemp -d)"
        trap 'rm -rf "$work"' EXIT
        (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root postgresql-doc-15) || {
            echo "postgresql-doc-15 cannot be downloaded; run 'apt-get update', or pass a folder with its pages" >&2
            exit 1
        }
        dpkg -x "$work"/*.deb "$cache"
    fi
fi
exec .venv/bin/python loadtests/retrieval/evaluate.py "$docs"
