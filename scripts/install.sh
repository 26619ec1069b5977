#!/usr/bin/env bash
# Installs what Hothouse needs from the system's packages, and nothing that is there already.
#
#   scripts/install.sh           what `make up` needs: PostgreSQL, Redis 7, bubblewrap, a C compiler
#   scripts/install.sh --test    and what the tests need: a Docker engine, debootstrap, curl
#
# It needs root or sudo only when something is missing. Services that a new package would start by itself are kept
# from starting, and those that were on the machine before are never touched.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

for_tests=false
case "${1:-}" in
--test) for_tests=true ;;
"") ;;
*) die "unknown option $1; scripts/install.sh takes none, or --test" ;;
esac

PATH=$PATH:/usr/sbin:/sbin
missing=()
units=()

# want PACKAGE [UNIT...] -- COMMAND...: the package is missing when the command fails; its units must not start.
want() {
    local package=$1 new=()
    shift
    while [ "$1" != -- ]; do
        new+=("$1")
        shift
    done
    shift
    if ! "$@" >/dev/null 2>&1; then
        case " ${missing[*]} " in
        *" $package "*) ;;
        *) missing+=("$package") ;;
        esac
        units+=("${new[@]}")
    fi
}

want postgresql postgresql.service -- postgres_bin
want redis-server redis-server.service -- command -v redis-server
want bubblewrap -- command -v bwrap
want gcc -- command -v cc
want libc6-dev -- test -e /usr/include/stdio.h
if $for_tests; then
    want docker.io docker.service docker.socket containerd.service -- command -v dockerd
    want docker.io -- command -v docker
    want debootstrap -- command -v debootstrap
    want curl -- command -v curl
    want ca-certificates -- test -e /etc/ssl/certs/ca-certificates.crt
fi

# Commands that change the system, as root or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -- "$@"
    fi
}

install_missing() {
    command -v apt-get >/dev/null ||
        die "missing: ${missing[*]}; this machine has no apt-get, so install them with its own package manager"
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "missing: ${missing[*]}; as root, run: apt-get install ${missing[*]}"
        echo "hothouse: sudo is needed once, to install ${missing[*]}"
    fi
    echo "hothouse: installing ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
    as_root "${apt[@]}" update </dev/null ||
        echo "hothouse: 'apt-get update' failed; trying with the package lists that are here" >&2
    # Newer releases keep the client apart from the engine.
    if $for_tests && ! command -v docker >/dev/null && apt-cache show docker-cli >/dev/null 2>&1; then
        missing+=(docker-cli)
    fi
    # A package asks this file whether it may start its service; 101 is no.
    local policy=/usr/sbin/policy-rc.d ours=false
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        ours=true
    fi
    local failed=false
    as_root "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" </dev/null >&2 || failed=true
    if $ours; then
        as_root rm -f "$policy"
    fi
    if $failed; then
        die "'apt-get install ${missing[*]}' failed; its message is above"
    fi
    # Nor at the next boot: Hothouse starts its own.
    if [ -d /run/systemd/system ] && [ "${#units[@]}" -gt 0 ]; then
        as_root systemctl disable --now "${units[@]}" >/dev/null 2>&1 || true
    fi
}

if [ "${#missing[@]}" -gt 0 ]; then
    install_missing
fi

version=$(redis_version)
case "${version%%.*}" in
"") die "redis-server does not tell its version; reinstall it with: apt-get install --reinstall redis-server" ;;
[0-6]) die "redis-server is $version, and Hothouse needs 7.0 or newer: use Debian 12, Ubuntu 24.04 or later" ;;
esac
command -v cargo >/dev/null || die "Rust is missing: install rustup from https://rustup.rs, then try again"
