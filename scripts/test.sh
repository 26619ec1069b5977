#!/usr/bin/env bash
# Runs every test against real parts: a Postgres, a Redis and a Docker engine of their own, on free ports.
#
#   scripts/test.sh [ARGUMENTS OF CARGO NEXTEST]     for example: scripts/test.sh -p worker
#   scripts/test.sh --lint [ARGUMENTS]               clippy, documentation and the offline query data first
#
# What it starts it ends by pid, on failure and on Ctrl-C too. A service whose variable is set already (see below) is
# taken as it is, neither started nor ended. The Docker engine's images stay in target/test for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/test"
state=$(cd "$target/test" && pwd -P)
exec 9>"$state/lock"
flock --nonblock 9 || die "another test run is under way in this folder; wait for it"

lint=false
if [ "${1:-}" = --lint ]; then
    lint=true
    shift
fi

services=
docker=
jobs=()
cleanup() {
    local code=$?
    trap '' INT TERM
    trap - EXIT
    local pid
    for pid in "${jobs[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    if [ -n "$docker" ]; then
        scripts/dockerd.sh stop "$docker" 9>&- || true
    fi
    if [ -n "$services" ]; then
        scripts/services.sh stop "$services" 9>&- || true
        rm -rf "$services"
    fi
    exit "$code"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "packages" scripts/install.sh --test

if [ -z "${HOTHOUSE_TEST_POSTGRES_URL:-}" ] || [ -z "${HOTHOUSE_TEST_REDIS_URL:-}" ] || [ -z "${DATABASE_URL:-}" ]; then
    services=$(mktemp -d "${TMPDIR:-/tmp}/hothouse-test.XXXXXX")
    step "Postgres and Redis" scripts/services.sh start "$services" 9>&-
    # shellcheck source=/dev/null
    . "$services/env"
fi

if [ -z "${HOTHOUSE_TEST_DOCKER_HOST:-}" ]; then
    docker=$state/docker
    # Sockets below it have room for 107 bytes in all.
    if [ "${#docker}" -gt 60 ]; then
        docker=/tmp/hothouse-docker-$(printf %s "$state" | cksum | cut -d' ' -f1)
    fi
    step "Docker engine" scripts/dockerd.sh start "$docker" 9>&-
    export HOTHOUSE_TEST_DOCKER_HOST=unix://$docker/docker.sock
fi

# The image builds while cargo compiles; its slow half needs no init.
image=
rm -f "$state/init"
if [ -z "${HOTHOUSE_TEST_IMAGE:-}" ]; then
    image_started=$SECONDS
    (
        export DOCKER_HOST=$HOTHOUSE_TEST_DOCKER_HOST
        scripts/image.sh default
        scripts/image.sh claude-code
        until [ -s "$state/init" ]; do sleep 0.2; done
        scripts/image.sh claude-code "$(cat "$state/init")" >/dev/null
        scripts/image.sh default "$(cat "$state/init")"
    ) >"$state/image" 2>"$state/image.log" </dev/null 9>&- &
    image=$!
    jobs+=("$image")
fi
started=$SECONDS
if [ -z "${HOTHOUSE_TEST_INIT:-}" ]; then
    HOTHOUSE_TEST_INIT=$(scripts/init.sh)
    export HOTHOUSE_TEST_INIT
    echo "== init: ok, $((SECONDS - started)) s"
fi
echo "$HOTHOUSE_TEST_INIT" >"$state/init"

# With a database in reach the macros check the SQL itself, and write down what a build without one needs.
check_code() {
    local queries=${DATABASE_URL%/*}/hothouse_queries
    psql -qX -d "$DATABASE_URL" -c 'drop database if exists hothouse_queries' -c 'create database hothouse_queries'
    DATABASE_URL=$queries scripts/sqlx.sh migrate
    (
        eval "$(scripts/sqlx.sh fresh)"
        export DATABASE_URL=$queries
        step "clippy" cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
    )
    step "query data" scripts/sqlx.sh compare
    SQLX_OFFLINE=true RUSTDOCFLAGS="-D warnings" \
        step "documentation" cargo doc --locked --workspace --no-deps --document-private-items
}
if $lint; then
    check_code 9>&-
fi

export SQLX_OFFLINE=true
if cargo nextest --version >/dev/null 2>&1; then
    step "compiling the tests" cargo nextest run --locked --no-run "$@" 9>&-
    command=(cargo nextest run --locked --no-fail-fast "$@")
else
    echo "hothouse: cargo-nextest is not installed; using cargo test, which is slower" >&2
    command=(cargo test --locked --no-fail-fast "$@")
fi

if [ -n "$image" ]; then
    wait "$image" || {
        cat "$state/image.log"
        die "the image does not build; its log is above"
    }
    HOTHOUSE_TEST_IMAGE=$(tail -n 1 "$state/image")
    export HOTHOUSE_TEST_IMAGE
    echo "== image $HOTHOUSE_TEST_IMAGE: ok, waited for until $((SECONDS - image_started)) s after its start"
fi

"${command[@]}" </dev/null 9>&-
