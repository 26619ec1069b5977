#!/bin/sh
# Turns a bare Debian or Ubuntu root into the root of a sandbox. Runs as root inside it: in a chroot, or as a build step
# of a Docker image. Takes what to install from SYSTEM, PIP and NPM (names apart by spaces). The folder that it lies in
# is removed by the caller.
set -eu
here=$(dirname "$0")
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

# No service may start during the build, no file is worth a sync to disk, and nobody reads manuals in a sandbox.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
mkdir -p /etc/dpkg/dpkg.cfg.d
cat >/etc/dpkg/dpkg.cfg.d/hothouse <<'END'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/man/*
END

# scipy's package asks for the compiler that it was built with, and that for g++ and boost: 400 MB that nothing runs.
stand_in=$(mktemp -d)
mkdir "$stand_in/DEBIAN"
cat >"$stand_in/DEBIAN/control" <<'END'
Package: hothouse-stand-in
Version: 1
Architecture: all
Maintainer: Hothouse
Provides: python3-pythran
Description: stands for packages which are asked for and not needed
END
dpkg-deb --build "$stand_in" /hothouse-stand-in.deb >/dev/null

options="-q -y -o Acquire::Retries=3 -o Acquire::Languages=none -o Dpkg::Use-Pty=0 --no-install-recommends"
apt-get -q -o Acquire::Retries=3 -o Acquire::Languages=none update
# shellcheck disable=SC2086 # lists of words, meant to be split
apt-get install $options /hothouse-stand-in.deb $SYSTEM
rm -rf "$stand_in" /hothouse-stand-in.deb

# A sandbox is thrown away after the job: the system's own packages cannot be spoilt for anybody.
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
# shellcheck disable=SC2086
[ -z "$PIP" ] || pip3 install --no-cache-dir --no-compile $PIP
# shellcheck disable=SC2086
[ -z "$NPM" ] || npm install --global --no-audit --no-fund --cache /tmp/npm $NPM

install -m 755 "$here/run-typescript" /usr/local/bin/run-typescript

# The job's user. Some images come with a user of that number already.
taken=$(getent passwd 1000 | cut -d: -f1)
[ -z "$taken" ] || userdel "$taken"
getent group 1000 >/dev/null || groupadd --gid 1000 job
useradd --uid 1000 --gid 1000 --no-create-home --home-dir /workspace --shell /bin/bash job
# Some runtimes ignore the mode of a tmpfs whose folder exists: the folder must have it already.
install -d -m 0700 -o 1000 -g 1000 /workspace
chmod 1777 /tmp

find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
apt-get clean
rm -rf /usr/share/doc /usr/share/info /usr/share/locale /usr/share/man /var/lib/apt/lists/* /var/cache/* /var/log/* \
    /root/.cache /root/.npm /root/.local /usr/sbin/policy-rc.d /etc/dpkg/dpkg.cfg.d/hothouse
mkdir -p /var/cache/apt/archives/partial /usr/share/man
find /tmp /var/tmp /run -xdev -mindepth 1 -delete 2>/dev/null || true
# The libraries' own test suites are 100 MB of what is never imported.
for folder in /usr/lib/python3/dist-packages; do
    [ ! -d "$folder" ] || find "$folder" -mindepth 2 -type d -name tests -prune -exec rm -rf {} +
done

# What every start of Python would do for nobody, a third of the interpreter's time: with the files of matplotlib's package
# it makes namespace packages of what Python 3 takes for such by itself; with that of setuptools it gets ready for programs
# that import distutils first, and they get Python's own so; and Debian's site module looks everywhere for the crash reporter
# of another distribution. What pip installed stays: that need not be like this. It is done here and not in a layer of its
# own, because folders that are in two layers are listed anew by each start.
rm -f /usr/lib/python3/dist-packages/*-nspkg.pth /usr/lib/python3/dist-packages/distutils-precedence.pth
for file in /usr/lib/python3.*/sitecustomize.py; do
    if grep -qs apport_python_hook "$file"; then rm -f "$file"; fi
done
