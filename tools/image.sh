#!/bin/sh
# Builds the container image localhost/gatepost from this tree with buildah, as root and without a registry.
#
# Both bases are made from Debian's packages, by the apt sources of this machine, and kept by their names; `buildah rmi`
# has them made anew. BASE and BUILD_BASE take other images instead. pip works as this machine's /etc/pip.conf says.
set -eu
cd "$(dirname "$0")/.."
SUITE=bookworm
PYTHON_PACKAGES=base-files,libc6,python3-minimal,libpython3-stdlib,netbase,tzdata,ca-certificates
BUILD_PACKAGES=$PYTHON_PACKAGES,python3-venv,python3-dev,gcc,libc6-dev,libmilter-dev,dash,coreutils,findutils

say() { printf '%s\n' "image: $*"; }

sources() { # the files that say where this machine's packages come from
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources; do
        if [ -e "$file" ]; then echo "$file"; fi
    done
}

base() { # $1: the image's name, $2: packages, which are unpacked and not configured: nothing here needs it
    if buildah inspect --type image "$1" >/dev/null 2>&1; then return; fi
    say "making $1"
    tree=$(mktemp -d)
    chmod 755 "$tree"
    # shellcheck disable=SC2046
    mmdebstrap --quiet --mode=root --variant=extract --include="$2" "$SUITE" "$tree" $(sources)
    made=$(buildah from scratch)
    buildah add -q "$made" "$tree" / >/dev/null
    buildah commit -q --rm "$made" "$1" >/dev/null
    rm -rf "$tree"
}

if [ -z "${BASE:-}" ]; then
    BASE=localhost/gatepost-base:$SUITE BUILD_BASE=localhost/gatepost-build-base:$SUITE
    base "$BASE" "$PYTHON_PACKAGES" &
    base "$BUILD_BASE" "$BUILD_PACKAGES"
    wait $!
fi
set -- --isolation chroot --build-arg "BASE=$BASE" --build-arg "BUILD_BASE=${BUILD_BASE:-$BASE}" "$@"
for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ]; then set -- --volume "$file:$file:ro" "$@"; fi
done
say "building localhost/gatepost"
buildah bud -q --layers -f Containerfile -t localhost/gatepost:test "$@" .
