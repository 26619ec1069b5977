#!/usr/bin/env bash
# A private Postgres and a private Redis for tests, on free ports of the loopback address.
#
#   scripts/services.sh start DIR    start both; DIR/env then exports their addresses
#   scripts/services.sh stop DIR     end both by their pids
#
# They forget: fsync is off, because the tests that kill something kill processes and never the machine. As root they
# run as the user `postgres`, who must be able to enter DIR; a folder below /tmp will do.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

[ $# -eq 2 ] || die "usage: scripts/services.sh start|stop DIR"
action=$1
dir=$2

# Runs a command as somebody who is not root, for neither server should be, and one refuses to. A prefix and not a
# function, for a function in the background is one more process, whose pid is not the server's.
unprivileged=()
if [ "$(id -u)" -eq 0 ]; then
    unprivileged=(setpriv --reuid postgres --regid postgres --init-groups --)
fi

start_postgres() {
    local bin port
    bin=$(postgres_bin) || die "PostgreSQL's server programs are missing; run scripts/install.sh"
    "${unprivileged[@]}" "$bin/initdb" --pgdata="$dir/postgres" --username=hothouse --auth=trust --encoding=UTF8 \
        --locale=C.UTF-8 --no-sync --no-instructions >"$dir/initdb.log" 2>&1 ||
        die "initdb failed: $(tail -n 3 "$dir/initdb.log")"
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        # A session of its own: a Ctrl-C meant for the tests must not end the server before they have.
        "${unprivileged[@]}" setsid "$bin/postgres" -D "$dir/postgres" -p "$port" -c listen_addresses=127.0.0.1 \
            -c unix_socket_directories= -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
            -c wal_level=minimal -c max_wal_senders=0 -c max_connections=500 -c shared_buffers=256MB \
            -c log_min_messages=fatal >"$dir/postgres.log" 2>&1 </dev/null &
        local pid=$!
        for _ in $(seq 150); do
            if "$bin/pg_isready" --quiet --host=127.0.0.1 --port="$port" --username=hothouse; then
                echo "$pid" >"$dir/postgres.pid"
                "$bin/psql" -qX -h 127.0.0.1 -p "$port" -U hothouse -d postgres -c 'create database hothouse_test'
                {
                    echo "export HOTHOUSE_TEST_POSTGRES_URL=postgres://hothouse@127.0.0.1:$port/postgres"
                    echo "export DATABASE_URL=postgres://hothouse@127.0.0.1:$port/hothouse_test"
                } >>"$dir/env"
                return 0
            fi
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill "$pid" 2>/dev/null || true
    done
    die "Postgres does not start: $(tail -n 3 "$dir/postgres.log")"
}

start_redis() {
    local port
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        "${unprivileged[@]}" setsid redis-server --port "$port" --bind 127.0.0.1 --dir "$dir" --save '' --appendonly no \
            --databases 64 --daemonize no >"$dir/redis.log" 2>&1 </dev/null &
        local pid=$!
        for _ in $(seq 100); do
            if [ "$(redis-cli -p "$port" ping 2>/dev/null)" = PONG ]; then
                echo "$pid" >"$dir/redis.pid"
                echo "export HOTHOUSE_TEST_REDIS_URL=redis://127.0.0.1:$port/" >>"$dir/env"
                return 0
            fi
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill "$pid" 2>/dev/null || true
    done
    die "Redis does not start: $(tail -n 3 "$dir/redis.log")"
}

# A process that ended but has not been waited for by its parent is not alive.
alive() {
    local state
    state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) && [ -n "$state" ] && [ "$state" != Z ]
}

# end NAME SIGNAL: ends the server of that name if the pid in its file is still one, and waits until it has gone.
end() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 0
    case "$(cat "/proc/$pid/comm" 2>/dev/null)" in
    postgres | redis-server) kill -"$2" "$pid" 2>/dev/null || true ;;
    *) return 0 ;;
    esac
    for _ in $(seq 100); do
        alive "$pid" || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

case $action in
start)
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd -P)
    if [ "$(id -u)" -eq 0 ]; then
        chown postgres: "$dir"
        "${unprivileged[@]}" test -x "$dir" || die "the user postgres cannot enter $dir; use a folder below /tmp"
    fi
    : >"$dir/env"
    start_postgres
    start_redis
    ;;
stop)
    # SIGINT is Postgres's fast shutdown: it ends its connections instead of waiting for them.
    end postgres INT
    end redis TERM
    ;;
*) die "usage: scripts/services.sh start|stop DIR" ;;
esac
