#!/usr/bin/env bash
# A private Docker engine: its own data, state, pid file and socket, all below one folder.
#
#   scripts/dockerd.sh start DIR     start it (nothing happens when it answers already) and wait until it answers
#   scripts/dockerd.sh stop DIR      end it by its pid; running containers end with it
#   scripts/dockerd.sh status DIR    exit 0 and print its address when it answers, 1 otherwise
#
# The address is unix://DIR/docker.sock. The engine has neither a bridge nor firewall rules, because sandboxes have no
# network; so it never meets another engine on the same machine. It needs root. `make up` never calls this: it is for
# tests and for development.
#
#   HOTHOUSE_DOCKERD_CGROUP  a cgroup of its own for its containers, so that what they leave behind can be told
set -euo pipefail

die() {
    echo "dockerd.sh: $*" >&2
    exit 1
}

usage() {
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
}

[ $# -eq 2 ] || usage
action=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd -P)
pid_file=$dir/dockerd.pid
socket=$dir/docker.sock
log=$dir/dockerd.log

# A unix socket's path has room for 107 bytes, and containerd puts its own below exec/.
[ "${#dir}" -le 60 ] || die "the path $dir is too long for a socket; choose one of at most 60 characters"

answers() {
    [ -S "$socket" ] && curl --silent --fail --max-time 2 --unix-socket "$socket" http://docker/_ping >/dev/null
}

# Prints the pid when the pid file names a dockerd of this very folder: a pid may have been given to somebody else.
running_pid() {
    local pid
    pid=$(cat "$pid_file" 2>/dev/null) || return 1
    [ -r "/proc/$pid/cmdline" ] && tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qxF -- "--pidfile=$pid_file" && echo "$pid"
}

# overlay2 needs a file system below that can be an upper layer; an overlay root cannot, and vfs copies whole images.
storage_driver() {
    local probe=$dir/overlay-probe
    mkdir -p "$probe"/{lower,upper,work,merged}
    if mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" \
        2>/dev/null; then
        umount "$probe/merged"
        rm -rf "$probe"
        echo overlay2
    else
        rm -rf "$probe"
        echo "dockerd.sh: no overlay mounts below $dir: using vfs, which is slow and large" >&2
        echo vfs
    fi
}

# A container without its own cgroup controllers has no limits; mount what the kernel has and the machine left out.
mount_cgroups() {
    mountpoint -q /sys/fs/cgroup && return 0
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    local name
    for name in $(awk '!/^#/ && $4 == 1 {print $1}' /proc/cgroups); do
        mkdir -p "/sys/fs/cgroup/$name"
        mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
    done
}

# Ends one process and waits until it has gone: politely for 30 s, then by force.
end() {
    local pid=$1 tries=0
    kill "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -ne 150 ] || kill -KILL "$pid" 2>/dev/null || return 0
        [ "$tries" -lt 200 ] || die "the process $pid does not end"
        sleep 0.2
    done
}

# Prints the pids of what an engine of this folder started and left behind: its containerd and the containers' shims.
leftovers() {
    local cmdline
    for cmdline in /proc/[0-9]*/cmdline; do
        if { tr '\0' '\n' <"$cmdline"; } 2>/dev/null | grep -qF -e "$dir/exec/containerd/"; then
            basename "$(dirname "$cmdline")"
        fi
    done
}

# Makes the folder fit for a new engine: one that was killed leaves processes, mounts and sockets.
clean() {
    local pid mount
    for pid in $(leftovers); do
        end "$pid"
    done
    # The deepest first.
    awk -v dir="$dir/" 'index($2, dir) == 1 {print $2}' /proc/mounts | sort -r | while read -r mount; do
        umount "$mount" 2>/dev/null || umount --lazy "$mount" || true
    done
    rm -rf "$dir/exec"
    rm -f "$pid_file" "$socket"
}

start() {
    if answers; then
        echo "unix://$socket"
        return 0
    fi
    [ "$(id -u)" -eq 0 ] || die "a Docker engine needs root"
    PATH=$PATH:/usr/sbin:/sbin
    local tool
    for tool in dockerd containerd runc curl; do
        command -v "$tool" >/dev/null || die "$tool is missing: install docker.io and curl with the system's packages"
    done
    local pid
    local cgroup=()
    if [ -n "${HOTHOUSE_DOCKERD_CGROUP:-}" ]; then
        cgroup=(--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent="$HOTHOUSE_DOCKERD_CGROUP")
    fi
    if ! pid=$(running_pid); then
        clean
        mount_cgroups
        local storage
        storage=$(storage_driver)
        # A session of its own: a Ctrl-C meant for the caller must not reach the engine before its stop does.
        setsid dockerd --host="unix://$socket" --data-root="$dir/data" --exec-root="$dir/exec" \
            --pidfile="$pid_file" --storage-driver="$storage" --bridge=none --iptables=false --ip6tables=false \
            --ip-forward=false --ip-masq=false --userland-proxy=false --log-level=warn \
            --max-concurrent-downloads=2 "${cgroup[@]}" >"$log" 2>&1 </dev/null &
        pid=$!
    fi
    local tries=0
    until answers; do
        tries=$((tries + 1))
        kill -0 "$pid" 2>/dev/null || die "the engine ended at once; the end of $log: $(tail -n 3 "$log")"
        [ "$tries" -lt 300 ] || die "the engine does not answer after 60 s; see $log"
        sleep 0.2
    done
    echo "unix://$socket"
}

stop() {
    local pid
    if pid=$(running_pid); then
        end "$pid"
    fi
    clean
}

case $action in
start) start ;;
stop) stop ;;
status) if answers; then echo "unix://$socket"; else exit 1; fi ;;
*) usage ;;
esac
