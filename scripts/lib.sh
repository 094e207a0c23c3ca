# Shared by the scripts in this folder: saying what happens, finding privileges, installing tools.
# To be sourced, after `set -euo pipefail`.
# shellcheck shell=bash

# The checkout. Every script works from any current directory.
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

# say TEXT…: one line about what comes next.
say() { printf '%s\n' "» $*"; }

# die TEXT…: the reason on stderr, then exit 1.
die() {
    printf '%s\n' "error: $*" >&2
    exit 1
}

# shout TEXT: a heading, so that a long log has chapters.
shout() { printf '\n━━━ %s\n' "$*"; }

# in_userns: are we root only inside a user namespace that `need_root_or_userns` made?
in_userns() { [[ -n ${SHUNT_IN_USERNS:-} ]]; }

# How `unshare` makes us root of new user, network, mount and process namespaces. What is started
# there dies with it.
UNSHARE=(unshare --user --map-root-user --net --mount --pid --fork --mount-proc --kill-child)

# need_userns: exits, and says what is missing, where we can't become root of a user namespace.
need_userns() {
    command -v unshare >/dev/null ||
        die "not root, and no 'unshare' (Debian package util-linux) to become root of a namespace"
    "${UNSHARE[@]}" true 2>/dev/null ||
        die "not root, and this kernel allows no user namespaces to ordinary users: run as root, or" \
            "'sysctl -w user.max_user_namespaces=1000 kernel.unprivileged_userns_clone=1'"
    [[ -r /dev/net/tun && -w /dev/net/tun ]] ||
        die "not root, and /dev/net/tun is not open to ordinary users:" \
            "run as root, or 'chmod 666 /dev/net/tun' (Debian's own setting)"
    # With more users than one, programs there can lay down privileges, as tcpdump insists on.
    if "${UNSHARE[@]}" --map-auto true 2>/dev/null; then
        UNSHARE+=(--map-auto)
    fi
}

# need_captures: exits, and says what is missing, where tcpdump won't work without root.
need_captures() {
    ((EUID != 0)) || return 0
    need_userns
    [[ ${UNSHARE[*]} == *--map-auto* ]] ||
        die "not root, and tcpdump needs a user to change to: run as root, or install the package" \
            "uidmap and give $(id -un) a line in /etc/subuid and /etc/subgid (see newuidmap(1))"
}

# enter_userns COMMAND…: becomes COMMAND, as root of a user namespace.
enter_userns() {
    need_userns
    # `ip netns` keeps its names below /run, which must therefore be our own. Scratch files go there
    # too, as what is left of others' runs can't be told from what is in use: their processes are
    # not to be seen from within.
    # shellcheck disable=SC2016 # expanded by the inner shell
    SHUNT_IN_USERNS=1 TMPDIR=/run/tmp exec "${UNSHARE[@]}" bash -c '
        mount -t tmpfs -o mode=755 shunt-run /run && mkdir -p /run/netns /run/tmp && exec "$@"
    ' enter-userns "$@"
}

# need_root_or_userns SCRIPT ARGUMENTS…: returns when root; otherwise runs the script again as root
# of a user namespace, or says what is missing and exits.
need_root_or_userns() {
    ((EUID != 0)) || return 0
    say "not root: running inside a user namespace of our own"
    enter_userns "$@"
}

# ensure_packages COMMAND:PACKAGE…: installs the Debian packages whose commands are missing, and
# calls apt only then. Services that come with them are not started.
ensure_packages() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    ((${#missing[@]})) || return 0

    if ((EUID != 0)) || in_userns; then
        die "missing programs; as root: apt-get install ${missing[*]}"
    fi
    command -v apt-get >/dev/null || die "no apt-get here; please install: ${missing[*]}"
    say "installing: ${missing[*]}"
    (
        # A policy that answers 101 keeps a new package (nginx) from listening on this machine.
        policy=/usr/sbin/policy-rc.d
        if [[ ! -e $policy ]]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod +x "$policy"
        fi
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    )
    hash -r
}

# need_cargo: the Rust toolchain is the one thing that we don't install.
need_cargo() {
    command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo >/dev/null || die "no cargo: install a Rust toolchain from https://rustup.rs"
    ensure_packages cc:gcc
}

# build_programs: all of Shunt's programs, as they are shipped. Always all: another choice of packages would have other
# features of their libraries, and everything would be built anew.
build_programs() {
    (cd "$ROOT" && cargo build --release --locked --workspace --bins)
}

# The programs of the lab, as COMMAND:PACKAGE.
# shellcheck disable=SC2034 # used by the scripts that source this file
LAB_PACKAGES=(
    ip:iproute2 ethtool:ethtool nginx:nginx-light curl:curl ping:iputils-ping
    tcpdump:tcpdump jq:jq socat:socat
)

# lab_up PREFIX: the network of topology.sh, with nginx on the mirrors and the origin. What an
# interrupted run left of a lab with this name is removed first. Files go to /run/PREFIX-lab.
lab_up() {
    local prefix=$1 host title folder
    lab_down "$prefix"
    "$ROOT/scripts/topology.sh" up "$prefix"
    for host in mirror1 mirror2 mirror3 origin; do
        folder=/run/$prefix-lab/$host
        title=${host/mirror/mirror }
        mkdir -p "$folder/html" "$folder/tmp"
        echo "$title" >"$folder/html/index.html"
        head -c 8M /dev/zero >"$folder/html/large"
        # Nobody's job but its host's: it ends by `lab_down`.
        (ip netns exec "$prefix-$host" setsid nginx -p "$folder" -c "$ROOT/scripts/nginx.conf" \
            -e error.log </dev/null &>"$folder/nginx.out" &)
        wait_for "nginx on $host" listens "$prefix-$host" tcp 80
    done
}

# lab_down PREFIX: ends what runs in the lab, and removes it.
lab_down() {
    "$ROOT/scripts/topology.sh" down "$1"
    rm -rf -- "/run/${1:?}-lab"
}

# listens NAMESPACE tcp|udp PORT: does something there listen at this port?
listens() { [[ -n $(ip netns exec "$1" ss -Hnl "--$2" "sport = :$3") ]]; }

# wait_for WHAT COMMAND…: until the command succeeds, for twenty seconds at most.
wait_for() {
    local what=$1 deadline=$((SECONDS + 20))
    shift
    until "$@" &>/dev/null; do
        ((SECONDS < deadline)) || die "waited in vain: $what"
        sleep 0.02
    done
}
