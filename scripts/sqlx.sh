#!/usr/bin/env bash
# The query data in .sqlx, by which SQL is checked in builds without a database.
#
#   scripts/sqlx.sh migrate    apply all migrations to the empty database of DATABASE_URL
#   scripts/sqlx.sh prepare    ask a database that holds every migration about every query, and write .sqlx
#   scripts/sqlx.sh check      the same, but compare with .sqlx and fail when they differ
#   scripts/sqlx.sh compare    compare .sqlx with the data of a build that has run already, in target/sqlx
#   scripts/sqlx.sh fresh      the environment with which a build writes that data, to be evaluated by a shell
#
# `prepare` and `check` take the database of DATABASE_URL, else they start one for themselves. The macros write the
# data, when SQLX_OFFLINE_DIR is set and they reach a database; no other tool is built.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.."

written=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-target}")/sqlx

migrate() {
    local file
    for file in migrations/*.sql; do
        PGOPTIONS="-c client_min_messages=warning" psql -qX -v ON_ERROR_STOP=1 -d "$DATABASE_URL" -f "$file" >/dev/null ||
            die "the migration $file fails"
    done
}

# Cargo does not know that the macros read a database: only a newer file makes it expand them again.
fresh() {
    rm -rf "$written"
    mkdir -p "$written"
    grep -rlE 'query(_as|_scalar)?!' --include='*.rs' common | xargs -r touch
    touch common/src/lib.rs
    echo "export SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$written"
}

generate() {
    eval "$(fresh)"
    cargo check --quiet --locked --package common --all-targets --all-features </dev/null
}

compare() {
    if [ ! -d .sqlx ] && [ -z "$(ls "$written")" ]; then
        echo "no query is checked by a macro, so there is nothing to compare"
        return 0
    fi
    diff --brief --recursive .sqlx "$written" || die ".sqlx is not what the queries need; run: make sqlx"
}

# Without a database given, one of its own, for as long as this script runs.
database() {
    [ -z "${DATABASE_URL:-}" ] || return 0
    scripts/install.sh
    services=$(mktemp -d "${TMPDIR:-/tmp}/hothouse-sqlx.XXXXXX")
    trap 'scripts/services.sh stop "$services"; rm -rf "$services"' EXIT
    scripts/services.sh start "$services"
    # shellcheck source=/dev/null
    . "$services/env"
    export DATABASE_URL
    migrate
}

case "${1:-}" in
migrate) migrate ;;
prepare)
    database
    generate
    rm -rf .sqlx
    cp -r "$written" .sqlx
    ;;
check)
    database
    generate
    compare
    ;;
compare) compare ;;
fresh) fresh ;;
*) die "usage: scripts/sqlx.sh migrate|prepare|check|compare|fresh" ;;
esac
