#!/bin/sh
# Prepares a fresh clone for `make run` or `make test`: system packages, virtual environment, pinned dependencies.
#
#   tools/setup.sh run     what Gatepost needs to run
#   tools/setup.sh test    that, the development tools, the real servers that the tests talk to, and what builds and runs
#                          the container image
#   tools/setup.sh full    that, and what else `make chart-full` needs: kubectl, models of custom resources, checkov
#
# A second run finds the stamp and does nothing. System packages are installed with apt-get as root or through
# `sudo -n`; elsewhere the command to run by hand is printed and the exit status is 1. No service is started.
set -eu

PATH="$PATH:/usr/sbin:/sbin"
cd "$(dirname "$0")/.."
SELF=tools/setup.sh
STAMP=.venv/gatepost-setup
POLICY=/usr/sbin/policy-rc.d

say() { printf '%s\n' "setup: $*"; }
die() { printf '%s\n' "setup: $*" >&2; exit 1; }

# --- as root: install Debian packages, start nothing, remove nothing -------------------------------------------------

restore_policy() {
    rm -f "$POLICY"
    if [ -e "$POLICY.gatepost-saved" ]; then mv "$POLICY.gatepost-saved" "$POLICY"; fi
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C
    log=$(mktemp)
    apt-get -o DPkg::Lock::Timeout=300 -q update >"$log" 2>&1 || { cat "$log" >&2; die "apt-get update failed"; }
    if apt-get -s install --no-install-recommends "$@" | grep '^Remv' >"$log"; then
        cat "$log" >&2
        die "installing $* would remove the packages above (one mail server per system); nothing was changed"
    fi
    fresh=""
    for service in postfix dovecot-core unbound knot haproxy opendkim opendmarc postgrey slapd rbldnsd rspamd clamav-daemon \
        clamav-milter spamd spamass-milter policyd-rate-limit policyd-weight postsrsd prometheus podman redis-server docker-registry postgresql; do
        case " $* " in *" $service "*) fresh="$fresh ${service%-core}" ;; esac
    done
    # Package scripts ask policy-rc.d before they start a service; 101 means "not allowed".
    if [ -e "$POLICY" ] && [ ! -e "$POLICY.gatepost-saved" ]; then mv "$POLICY" "$POLICY.gatepost-saved"; fi
    trap restore_policy EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$POLICY"
    chmod 755 "$POLICY"
    case " $* " in
    *" postfix "*)
        # The tests bring their own configuration; the system's stays empty.
        echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections ;;
    esac
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 </dev/null ||
        { cat "$log" >&2; die "apt-get install $* failed"; }
    if grep '^Removing ' "$log" >&2; then die "apt removed the packages above while installing $*"; fi
    if [ -d /run/systemd/system ] && [ -n "$fresh" ]; then
        # Nor shall they start at the next boot.
        # shellcheck disable=SC2086
        systemctl --quiet disable $fresh || say "could not disable:$fresh"
    fi
    rm -f "$log"
}

if [ "${1:-}" = packages ]; then
    shift
    install_packages "$@"
    exit 0
fi

# --- what is missing --------------------------------------------------------------------------------------------------

MODE=${1:-}
case "$MODE" in
run) LOCK=requirements.lock ;;
test | full) LOCK=requirements-dev.lock ;;
*) echo "usage: $SELF run|test|full" >&2; exit 2 ;;
esac

recent_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if recent_enough "$candidate"; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return
        fi
    done
    die "Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python3"
}

compiles() { # the flags of a program that includes and links what is wanted
    printf '%s\nint main(void) { return 0; }\n' "$1" |
        "${CC:-gcc}" -x c - -o /dev/null "$2" "$3" >/dev/null 2>&1
}

missing_servers() {
    for pair in postfix:postfix smtp-source:postfix swaks:swaks dovecot:dovecot-core doveconf:dovecot-core \
        zip:zip unbound:unbound rbldnsd:rbldnsd knotd:knot haproxy:haproxy openssl:openssl strace:strace curl:curl \
        nbdkit:nbdkit nbdfuse:libnbd-bin mkfs.ext4:e2fsprogs mount:mount unshare:util-linux ip:iproute2 \
        opendkim:opendkim opendkim-genkey:opendkim-tools opendmarc:opendmarc postgrey:postgrey \
        policyd-spf:postfix-policyd-spf-python policyd-rate-limit:policyd-rate-limit policyd-weight:policyd-weight \
        rspamd:rspamd clamd:clamav-daemon clamav-milter:clamav-milter clamdscan:clamdscan spamd:spamd spamc:spamc \
        spamassassin:spamassassin spamass-milter:spamass-milter miltertest:miltertest slapd:slapd ldapsearch:ldap-utils xmllint:libxml2-utils \
        gpg:gpg gpg-agent:gpg-agent procmail:procmail maildrop:maildrop s-nail:s-nail srs:srs postsrsd:postsrsd promtool:prometheus redis-server:redis-server; do
        command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
    done
    # swaks speaks TLS through it.
    perl -MNet::SSLeay -e 1 2>/dev/null || echo libnet-ssleay-perl
    [ -e /usr/lib/postfix/postfix-pcre.so ] || echo postfix-pcre
    ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || echo postgresql
    [ -x /usr/lib/dovecot/lmtp ] || echo dovecot-lmtpd
    [ -x /usr/lib/dovecot/imap ] || echo dovecot-imapd
}

missing_for_images() {
    for pair in podman:podman buildah:buildah runc:runc catatonit:catatonit conmon:conmon mmdebstrap:mmdebstrap; do
        command -v "${pair%%:*}" >/dev/null || [ -x "/usr/libexec/podman/${pair%%:*}" ] || echo "${pair#*:}"
    done
    [ "$MODE" = test ] || command -v docker-registry >/dev/null || echo docker-registry
}

beside() { # $1: a lock file's name, $2: what it has. Installed as .venv/tools/NAME, beside the virtual environment
    if [ "$(cat ".venv/tools/$1.lock" 2>/dev/null)" = "$(cat "tools/$1.lock")" ]; then return; fi
    say "installing $2 in .venv/tools"
    .venv/bin/python -m pip -qq --disable-pip-version-check --no-input install --no-deps --upgrade --target ".venv/tools/$1" \
        --require-hashes -r "tools/$1.lock" </dev/null
    cp "tools/$1.lock" ".venv/tools/$1.lock"
}

missing_for_python() { # $1: the interpreter
    version=$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$1" -c 'import venv, ensurepip' 2>/dev/null || echo "$version-venv"
    headers=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -e "$headers/Python.h" ] || echo "$version-dev"
    command -v "${CC:-gcc}" >/dev/null || echo gcc
    compiles '#include <stdio.h>' -I. -lc || echo libc6-dev
    # pymilter is built from source against libmilter.
    compiles '#include <libmilter/mfapi.h>' -lmilter -lpthread || echo libmilter-dev
}

need() { # install the packages named, or say how
    # shellcheck disable=SC2046,SC2086
    set -- $(printf '%s\n' $1 | sort -u)
    [ $# -gt 0 ] || return 0
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        say "installing system packages: $*"
        sh "$SELF" packages "$@"
    elif command -v apt-get >/dev/null && command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        say "installing system packages with sudo: $*"
        sudo -n sh "$SELF" packages "$@"
    else
        die "these system packages are missing and may not be installed from here; run as root:
  apt-get update && apt-get install -y --no-install-recommends $*
and then run this again"
    fi
}

# --- the stamp --------------------------------------------------------------------------------------------------------

fingerprint() { # $1: mode. The clone's own path counts, since scripts in a virtual environment carry it.
    {
        echo "$1 $PWD"
        .venv/bin/python -c 'import sys; print(sys.version)' 2>/dev/null || echo none
        cat requirements.lock requirements-dev.lock tools/helm.lock pyproject.toml "$SELF"
    } | sha256sum
}

done_for() { [ -e "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint "$1")" ]; }

case "$MODE" in test | full) need "$(missing_servers; missing_for_images)" ;; esac
if [ "$MODE" = full ]; then
    sh "$SELF" test
    .venv/bin/python tools/helm.py .venv/tools kubectl3 kubectl4
    beside models "models of custom resources"
    beside contents "what lists the contents of an image"
    beside checkov "checkov"
    exit 0
fi
if done_for test || { [ "$MODE" = run ] && done_for run; }; then exit 0; fi

# --- the virtual environment ------------------------------------------------------------------------------------------

python=$(find_python)
need "$(missing_for_python "$python")"

usable_venv() { # made here (scripts carry the path), of a recent Python, with pip
    grep -qF "$PWD/.venv" .venv/bin/activate 2>/dev/null && recent_enough .venv/bin/python &&
        .venv/bin/python -m pip --version >/dev/null 2>&1
}

if ! usable_venv; then
    say "creating .venv with $python"
    "$python" -m venv --clear .venv
fi
rm -f "$STAMP"
say "installing pinned dependencies from $LOCK"
pip() { .venv/bin/python -m pip -qq --disable-pip-version-check --no-input install "$@" </dev/null; }
pip --require-hashes -r "$LOCK"
pip --no-deps --no-build-isolation -e .
if [ "$MODE" = test ]; then
    say "installing Helm 3 and Helm 4 in .venv/tools"
    .venv/bin/python tools/helm.py .venv/tools
fi
fingerprint "$MODE" >"$STAMP"
say "ready"
