#!/bin/sh
# Builds the container image localhost/gatepost from this tree with buildah, as root and without a registry.
#
# Both bases are made from Debian's packages, by the apt sources of this machine, and kept by their names; `buildah rmi`
# has them made anew. BASE and BUILD_BASE take other images instead. pip works as this machine's /etc/pip.conf says.
# Arguments go to `buildah bud`.
set -eu
cd "$(dirname "$0")/.."
SUITE=bookworm
LABEL=gatepost.build=tools/image.sh
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
    made=$(buildah from scratch) || return
    # Where the image's files will be, so that nothing is copied.
    # shellcheck disable=SC2046
    if tree=$(buildah mount "$made") && mmdebstrap --quiet --mode=root --variant=extract \
        --aptopt='APT::Sandbox::User "root"' --include="$2" "$SUITE" "$tree" $(sources); then
        buildah commit -q --rm "$made" "$1" >/dev/null
    else
        buildah rm "$made" >/dev/null
        return 1
    fi
}

if [ -z "${BASE:-}" ]; then
    BASE=localhost/gatepost-base:$SUITE BUILD_BASE=localhost/gatepost-build-base:$SUITE
    base "$BASE" "$PYTHON_PACKAGES" &
    failed=""
    base "$BUILD_BASE" "$BUILD_PACKAGES" || failed=1
    wait $! && [ -z "$failed" ] || { say "the bases could not be made" >&2; exit 1; }
fi
# Which commit it is, where it is just that.
if revision=$(git rev-parse HEAD 2>/dev/null) && [ -z "$(git status --porcelain)" ]; then
    set -- --label "org.opencontainers.image.revision=$revision" "$@"
fi
set -- --isolation chroot --build-arg "BASE=$BASE" --build-arg "BUILD_BASE=${BUILD_BASE:-$BASE}" "$@"
for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ]; then set -- --volume "$file:$file:ro" "$@"; fi
done
say "building localhost/gatepost"
# One layer on the base. Keeping the steps as layers would save a third of the time of the next build, make the first
# one longer by as much, and leave images without a name after each.
buildah bud -q --layers=false --label "$LABEL" -f Containerfile -t localhost/gatepost:test "$@" .
# Builds that have lost the name to a newer one, and that nobody uses.
podman image prune --force --filter "label=$LABEL" --filter until=1h >/dev/null
