#!/usr/bin/env bash
# Builds the image of an environment.
#
#   scripts/image.sh NAME INIT       the whole image; INIT is the hothouse-init binary. Its tag is the last line printed
#   scripts/image.sh NAME            the slow half alone, without the init, while that still compiles
#
# The tag is made of what goes in (packages, recipe, init), so nothing is done when it exists already;
# hothouse/NAME:current always points to the newest. The root comes from the base image when a registry gives it within
# seconds, else from debootstrap and the mirrors that this host's apt uses, which needs root on Debian or Ubuntu.
#
# DOCKER_HOST            the engine
# HOTHOUSE_CACHE         where finished roots are kept (default .hothouse/cache)
# HOTHOUSE_ENVIRONMENTS  where NAME.toml is looked for before environments/
# HOTHOUSE_BASE          "pull" or "debootstrap" to try only that way
set -euo pipefail

die() {
    echo "image.sh: $*" >&2
    exit 1
}

say() {
    echo "image.sh: $* (${SECONDS} s)" >&2
}

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
images=$repository/sandbox/images
cache=${HOTHOUSE_CACHE:-$repository/.hothouse/cache}

# Prints the strings of one array of the [packages] table, apart by spaces: TOML enough for lists of plain strings.
packages() {
    awk -v key="$1" '
        /^[[:space:]]*\[/ && !inside { table = $0 }
        { sub(/#.*/, "") }
        table ~ /^\[packages\]/ && $0 ~ "^[[:space:]]*" key "[[:space:]]*=" { inside = 1; sub(/^[^=]*=/, "") }
        inside {
            rest = $0
            while (match(rest, /"[^"]*"/)) {
                printf "%s ", substr(rest, RSTART + 1, RLENGTH - 2)
                rest = substr(rest, RSTART + RLENGTH)
            }
            if ($0 ~ /\]/ || $0 !~ /\[/ && !open) inside = 0
            open = inside
        }' "$toml"
}

# What apt on this host uses for its own distribution, as lines "ADDRESS|SUITE|COMPONENT".
apt_sources() {
    local distribution
    case " $ID ${ID_LIKE:-} " in
    *" ubuntu "*) distribution=Ubuntu ;;
    *) distribution=Debian ;;
    esac
    apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' "Origin: $distribution" |
        grep -F "|$VERSION_CODENAME"
}

# Runs a command in a root with mounts of its own, which vanish with it. The host's certificates are lent, never
# copied: they may be needed to reach a registry and are nobody's business in a sandbox.
in_root() {
    local root=$1
    shift
    touch "$root/hothouse-build/certificates.pem"
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount --propagation private --pid --fork --kill-child -- sh -euc '
        root=$1; shift
        mount -t proc proc "$root/proc"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
        inside=/hothouse-build/certificates.pem
        if [ -r "$certificates" ]; then
            mount --bind "$certificates" "$root$inside"
            export SSL_CERT_FILE=$inside CURL_CA_BUNDLE=$inside REQUESTS_CA_BUNDLE=$inside PIP_CERT=$inside
            export NODE_EXTRA_CA_CERTS=$inside
        fi
        unset SSL_CERT_DIR
        cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
        export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
        exec chroot "$root" "$@"' in_root "$root" "$@" </dev/null
}

# Makes the root with debootstrap and hands it to the engine, keeping a copy.
debootstrap_root() {
    [ "$(id -u)" -eq 0 ] || die "no registry gives $base, and debootstrap needs root: run this as root"
    local tool
    for tool in debootstrap unshare apt-get; do
        command -v "$tool" >/dev/null || die "no registry gives $base, and $tool is missing: install it with apt"
    done
    # shellcheck source=/dev/null
    . /etc/os-release
    local sources
    sources=$(apt_sources) || true
    if [ -z "$sources" ]; then
        apt-get -qq update
        sources=$(apt_sources) || die "apt knows no mirror of $PRETTY_NAME $VERSION_CODENAME"
    fi
    local mirror
    mirror=$(grep -F "|$VERSION_CODENAME|main" <<<"$sources" | head -n 1 | cut -d'|' -f1)

    work=$(mktemp -d "$cache/build.XXXXXX")
    local root=$work/root
    say "debootstrap of $VERSION_CODENAME"
    debootstrap --variant=minbase --include=ca-certificates "$VERSION_CODENAME" "$root" "$mirror" \
        >"$work/log" 2>&1 || die "debootstrap failed: $(tail -n 5 "$work/log")"
    awk -F'|' '{print "deb", $1, $2, $3}' <<<"$sources" >"$root/etc/apt/sources.list"
    printf 'Acquire::https::CAInfo "/hothouse-build/certificates.pem";\n' >"$root/etc/apt/apt.conf.d/hothouse"

    say "packages"
    mkdir "$root/hothouse-build"
    cp "$images/provision.sh" "$images/run-typescript" "$root/hothouse-build/"
    SYSTEM=$system PIP=$pip NPM=$npm in_root "$root" sh /hothouse-build/provision.sh >"$work/log" 2>&1 ||
        die "the packages do not install: $(tail -n 20 "$work/log")"
    rm -rf "$root/hothouse-build" "$root/etc/apt/apt.conf.d/hothouse"
    : >"$root/etc/apt/sources.list"
    : >"$root/etc/resolv.conf"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"

    say "import"
    mkfifo "$work/copy"
    compress <"$work/copy" >"$work/kept" &
    tar -C "$root" --numeric-owner --one-file-system -c . | tee "$work/copy" | docker import - "$root_tag" >/dev/null
    wait $!
    # One copy is kept, that of the newest recipe.
    rm -f "$cache/$name-root-"*.tar
    mv "$work/kept" "$kept"
    rm -rf --one-file-system "$work"
}

# The quickest that the host has; gzip is everywhere.
compress() {
    if command -v zstd >/dev/null; then zstd -q -1 -T0; else gzip -1; fi
}

decompress() {
    if [ "$(head -c 2 "$1" | od -An -tx1 | tr -d ' ')" = 1f8b ]; then gzip -dc "$1"; else zstd -q -dc "$1"; fi
}

# Prints nothing and fails when no registry gives the base image soon.
pull_base() {
    docker image inspect "$base" >/dev/null 2>&1 || timeout 20 docker pull --quiet "$base" >/dev/null 2>&1
}

# Puts packages on top of another environment's root. What the build needs of this host is lent to the container and
# not copied: its certificates, and its mirrors where the root has none of its own.
extend_root() {
    local inside=/run/hothouse-build lent=()
    work=$(mktemp -d "$cache/extend.XXXXXX")
    cp "$images/provision.sh" "$images/run-typescript" "$work/"
    # In a file, since the variables of a container stay in its image.
    printf "export SYSTEM='%s' PIP='%s' NPM='%s'\n" "$system" "$pip" "$npm" >"$work/env"
    local certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
    if [ -r "$certificates" ]; then
        cp -L "$certificates" "$work/certificates.pem"
        for variable in SSL_CERT_FILE CURL_CA_BUNDLE REQUESTS_CA_BUNDLE PIP_CERT NODE_EXTRA_CA_CERTS; do
            echo "export $variable=$inside/certificates.pem" >>"$work/env"
        done
    fi
    local has_mirrors='grep -qrs . /etc/apt/sources.list /etc/apt/sources.list.d'
    if command -v apt-get >/dev/null &&
        ! docker run --rm --network none --entrypoint sh "$from_tag" -c "$has_mirrors"; then
        # shellcheck source=/dev/null
        . /etc/os-release
        apt_sources | awk -F'|' '{print "deb", $1, $2, $3}' >"$work/sources.list"
        printf 'Acquire::https::CAInfo "%s/certificates.pem";\n' "$inside" >"$work/apt.conf"
        echo "export APT_CONFIG=$inside/apt.conf" >>"$work/env"
        lent=(--volume "$work/sources.list:/etc/apt/sources.list:ro")
    fi
    say "packages on $from_tag"
    local container
    # The pages' folder is gone from the root, and some packages fail to set themselves up without it.
    container=$(docker create --network host --user 0 --volume "$work:$inside:ro" "${lent[@]}" \
        --entrypoint sh "$from_tag" -c "mkdir -p /usr/share/man/man1 && . $inside/env && exec sh $inside/provision.sh")
    if ! docker start --attach "$container" >"$work/log" 2>&1; then
        docker rm --force "$container" >/dev/null
        die "the packages do not install: $(tail -n 20 "$work/log")"
    fi
    docker commit "$container" "$root_tag" >/dev/null
    docker rm --force "$container" >/dev/null
    rm -rf "$work"
}

make_root() {
    if docker image inspect "$root_tag" >/dev/null 2>&1; then
        return
    fi
    if [ -n "$from" ]; then
        extend_root
        return
    fi
    if [ -s "$kept" ]; then
        say "the root is kept in $kept: import"
        decompress "$kept" | docker import - "$root_tag" >/dev/null && return
        rm -f "$kept"
    fi
    if [ "${HOTHOUSE_BASE:-pull}" = pull ] && pull_base; then
        say "root on $base"
        docker build --quiet --network host --tag "$root_tag" --build-arg "BASE=$base" --build-arg "SYSTEM=$system" \
            --build-arg "PIP=$pip" --build-arg "NPM=$npm" --file "$images/Dockerfile" "$images" >/dev/null ||
            die "the root does not build on $base"
    elif [ "${HOTHOUSE_BASE:-debootstrap}" = debootstrap ]; then
        debootstrap_root
    else
        die "no registry gives $base"
    fi
}

make_image() {
    local context
    context=$(mktemp -d "$cache/context.XXXXXX")
    install -m 755 "$init" "$context/init"
    # The file's time is part of a layer: without this the same init would make another one.
    touch -d @0 "$context/init"
    docker build --quiet --network none --tag "$tag" --build-arg "ROOT=$root_tag" \
        --label "hothouse.environment=$name" --file "$images/Dockerfile.init" "$context" >/dev/null 2>"$context/log" ||
        die "the init's layer does not build: $(cat "$context/log")"
    rm -rf "$context"
}

[ $# -ge 1 ] && [ $# -le 2 ] || {
    sed -n '2,14s/^# \{0,1\}//p' "$0"
    exit 2
}
name=$1
init=${2:-}
# The folder of an environment's file: that of one's own, else the one that comes with Hothouse.
environment_folder() {
    local own=${HOTHOUSE_ENVIRONMENTS:-$repository/environments}
    if [ -r "$own/$1.toml" ]; then echo "$own"; else echo "$repository/environments"; fi
}
toml=$(environment_folder "$name")/$name.toml
[ -r "$toml" ] || die "there is no environment $name: $toml is missing"
[ -z "$init" ] || [ -x "$init" ] || die "the init $init is missing: build it first"
docker version >/dev/null 2>&1 || die "no Docker engine answers at ${DOCKER_HOST:-the default address}"
mkdir -p "$cache"
work=
trap '[ -z "$work" ] || rm -rf --one-file-system "$work"' EXIT

base=$(packages base | xargs)
base=${base:-debian:bookworm-slim}
from=$(packages from | xargs)
from_tag=
# The root below, built first when it is not there; its tag is part of what this one is made of.
[ -z "$from" ] || from_tag=$(HOTHOUSE_ENVIRONMENTS=$(environment_folder "$from") "$0" "$from" | tail -n 1)
system=$(packages system | xargs)
pip=$(packages pip | xargs)
npm=$(packages npm | xargs)
root_hash=$( (echo "${from_tag:-$base}|$system|$pip|$npm" && cat "$images"/{provision.sh,run-typescript}) | sha256sum | cut -c1-16)
root_tag=hothouse/$name-root:$root_hash
kept=$cache/$name-root-$root_hash.tar
# Two builds of one root at once would do the work twice.
exec 8>"$cache/$name.lock"
flock 8
make_root

if [ -z "$init" ]; then
    say "the root is ready"
    echo "$root_tag"
    exit 0
fi
tag=hothouse/$name:$( (echo "$root_hash" && cat "$images/Dockerfile.init" "$init") | sha256sum | cut -c1-16)
docker image inspect "$tag" >/dev/null 2>&1 || make_image
docker tag "$tag" "hothouse/$name:current"
say "ready"
echo "$tag"
