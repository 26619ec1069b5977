#!/usr/bin/env bash
# Raises a storm of faults over real processes and checks what they did: see docs/testing.md.
#
#   SEED          of the faults; random when it is empty, and printed
#   SECONDS_LONG  how long the storm rages; 600
#   FAULTS        all, or kills (of workers alone, to measure how soon their jobs run elsewhere), or freeze: one worker
#                 stands still for SECONDS_LONG (60) and comes back
#   HOTHOUSE_TORTURE_DOCKER_HOST  the engine for sandboxes; bubblewrap without one
#   HOTHOUSE_TORTURE_BINARIES     a folder of binaries to torture instead of the ones that this builds
#
# It starts a Postgres and a Redis of its own and ends them, and whatever else it started.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/install.sh --test
export SQLX_OFFLINE=true
if [ -z "${HOTHOUSE_TEST_INIT:-}" ]; then
    HOTHOUSE_TEST_INIT=$(scripts/init.sh)
    export HOTHOUSE_TEST_INIT
fi
cargo build --locked --quiet --bins
HOTHOUSE_TORTURE_SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
HOTHOUSE_TORTURE_SECONDS=${SECONDS_LONG:-600}
HOTHOUSE_TORTURE_FAULTS=${FAULTS:-all}
export HOTHOUSE_TORTURE_SEED HOTHOUSE_TORTURE_SECONDS HOTHOUSE_TORTURE_FAULTS RUST_BACKTRACE=0
storm=torture::a_storm_of_faults_breaks_no_promise
if [ "$HOTHOUSE_TORTURE_FAULTS" = freeze ]; then
    storm=torture::frozen::a_worker_that_stood_still_changes_nothing_any_more
    export HOTHOUSE_TORTURE_FREEZE_SECONDS=${SECONDS_LONG:-60}
fi
# Not through nextest: a storm is as long as it is asked to be.
exec cargo test --locked --quiet -p hothouse --test it -- --exact "$storm" --nocapture
