# What the other scripts share. Source it; it runs nothing.
# shellcheck shell=bash

# The one sentence with which a script gives up.
die() {
    echo "hothouse: $*" >&2
    exit 1
}

# The directory of PostgreSQL's server programs, the newest version first; they are not on the PATH in Debian.
postgres_bin() {
    local dir
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -V -r); do
        if [ -x "$dir/initdb" ] && [ -x "$dir/postgres" ]; then
            echo "$dir"
            return 0
        fi
    done
    dir=$(command -v initdb) && dirname "$(readlink -f "$dir")"
}

# The version of the Redis server, such as 7.0.15.
redis_version() {
    redis-server --version 2>/dev/null | sed -n 's/.* v=\([0-9.]*\).*/\1/p'
}

# A port on the loopback address that nobody listens on. Somebody may take it before its use: callers try again.
free_port() {
    local port
    while :; do
        port=$((20000 + RANDOM % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

# Runs a step quietly and says how long it took; its output is shown when it fails.
#   step NAME COMMAND...
step() {
    local name=$1 started=$SECONDS log
    shift
    log=$(mktemp "${TMPDIR:-/tmp}/hothouse-step.XXXXXX")
    if "$@" >"$log" 2>&1 </dev/null; then
        echo "== $name: ok, $((SECONDS - started)) s"
        rm -f "$log"
    else
        local code=$?
        cat "$log"
        echo "== $name: FAILED after $((SECONDS - started)) s"
        rm -f "$log"
        return "$code"
    fi
}
