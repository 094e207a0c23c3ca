#!/usr/bin/env bash
# A lab to play in: client ─ rewriter ─ {mirrors 1 to 3, origin}, each a network namespace,
# with a web server on the mirrors and on the origin. topology.sh has the picture.
#
#   scripts/lab.sh up                       makes it (again)
#   scripts/lab.sh shell HOST [COMMAND…]    a shell, or a command, on client, rewriter, …
#   scripts/lab.sh status                   which hosts there are, and what runs on them
#   scripts/lab.sh down                     ends what runs in it, and removes it
#
# Without root the lab stands in a user namespace, which a background process holds open.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

PREFIX=shunt
HOSTS=(client rewriter mirror1 mirror2 mirror3 origin)
HOLDER_FILE=${XDG_RUNTIME_DIR:-/tmp}/shunt-lab-$EUID.pid

usage() {
    sed -n '5,8s/^#   //p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

# holder: the first process inside the user namespace that is held open, if there is one.
holder() {
    local outer inner
    [[ -O $HOLDER_FILE ]] && outer=$(<"$HOLDER_FILE") || return 1
    grep -qsz enter-userns "/proc/$outer/cmdline" || return 1
    # The kernel ends the list with a space and no newline, so `read` reports an end of file.
    read -r inner _ <"/proc/$outer/task/$outer/children" || [[ -n $inner ]] || return 1
    echo "$inner"
}

# without_root COMMAND…: does the rest of this script as root of the held namespace.
without_root() {
    local inner
    if ! inner=$(holder); then
        [[ $1 == up ]] || die "no lab stands; begin with: scripts/lab.sh up"
        need_userns
        say "not root: the lab will stand inside a user namespace of our own"
        (enter_userns sleep infinity) </dev/null &>/dev/null &
        echo $! >"$HOLDER_FILE"
        wait_for "a user namespace" holder
        inner=$(holder)
    fi
    if [[ $1 == down ]]; then
        say "ending the user namespace, and with it all that is in it"
        kill -KILL "$(<"$HOLDER_FILE")"
        rm -f "$HOLDER_FILE"
        exit
    fi
    local enter=(nsenter --target "$inner" --user --net --mount --pid --preserve-credentials)
    # The first process inside has /run to set up.
    wait_for "a /run of our own" "${enter[@]}" test -d /run/tmp
    SHUNT_IN_USERNS=1 TMPDIR=/run/tmp exec "${enter[@]}" --wd="$PWD" "$ROOT/scripts/lab.sh" "$@"
}

up() {
    ensure_packages "${LAB_PACKAGES[@]}"
    say "making the hosts ${HOSTS[*]/#/$PREFIX-}, and starting nginx on the mirrors and the origin"
    lab_up "$PREFIX"
    cat <<'HELP'

  client ───────────── rewriter ─────┬── mirror1  10.2.0.2        fd00:2::2
  10.1.0.2  fd00:1::2                ├── mirror2  10.2.0.3        fd00:2::3
                                     ├── mirror3  10.2.0.4        fd00:2::4
                                     └── origin   100.100.100.100 fd00:100::100

The lab stands. Without Shunt, the origin answers:
  scripts/lab.sh shell client curl http://100.100.100.100/

Start Shunt (cargo build --release first), and leave it running:
  scripts/lab.sh shell rewriter target/release/shuntd --proxy 10.10.10.10 --proxy fd00:10::10

Then, in another terminal:
  target/release/shuntctl divert 100.100.100.100:80 10.2.0.2
  scripts/lab.sh shell client curl http://100.100.100.100/
  target/release/shuntctl redirect 100.100.100.100:80 10.2.0.3
  scripts/lab.sh shell mirror2 tcpdump -ni eth0

When you have seen enough: scripts/lab.sh down
HELP
    # The socket's path lies in /run, which is another one inside the user namespace.
    if in_userns; then
        echo "(Without root, shuntctl too wants: scripts/lab.sh shell rewriter target/release/shuntctl …)"
    fi
}

shell() {
    local host=${1:-}
    shift || usage
    [[ " ${HOSTS[*]} " == *" $host "* ]] || die "no host '$host'; there are: ${HOSTS[*]}"
    [[ -e /run/netns/$PREFIX-$host ]] || die "no lab stands; begin with: scripts/lab.sh up"
    if (($#)); then
        exec ip netns exec "$PREFIX-$host" "$@"
    fi
    say "a shell on $host; leave it with 'exit'"
    exec ip netns exec "$PREFIX-$host" env PS1="$host# " bash --norc
}

status() {
    local host namespace
    for host in "${HOSTS[@]}"; do
        namespace=$PREFIX-$host
        if [[ ! -e /run/netns/$namespace ]]; then
            say "$host: isn't there"
            continue
        fi
        say "$host: $(ip -n "$namespace" -o addr show scope global |
            awk '{print $2, $4}' | paste -sd ';' | sed 's/;/; /g')"
        ip netns pids "$namespace" | xargs -r ps -o pid=,args= -p || true
    done
}

[[ ${1:-} =~ ^(up|down|shell|status)$ ]] || usage
((EUID == 0)) || without_root "$@"
case $1 in
    up | status) "$1" ;;
    shell) shell "${@:2}" ;;
    down)
        say "removing the lab"
        lab_down "$PREFIX"
        ;;
esac
