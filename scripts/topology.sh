#!/usr/bin/env bash
# The lab's network: six hosts, each a network namespace.
#
#                                                ┌── mirror1  10.2.0.2  fd00:2::2  123.45.67.89
#   client ───────────────── rewriter ───────────┼── mirror2  10.2.0.3  fd00:2::3
#   10.1.0.2, .3  fd00:1::2, ::3   .1 and ::1    ├── mirror3  10.2.0.4  fd00:2::4
#   10.1.1.2  fd00:1:1::2        on every link   └── origin   100.100.100.100  fd00:100::100
#   10.1.2.2  fd00:1:2::2
#   1.2.3.4
#
# 10.1.1.2 and 10.1.2.2, and their like over IPv6, are clients of other networks, which the client's
# host uses only if it is told to.
#
# The rewriter forwards, with strict reverse-path filtering on every interface. Its interfaces
# bear the names of the hosts behind them; each host has one interface, eth0. 1.2.3.4 and
# 123.45.67.89 are the client and the mirror of the patent's figure 3. A proxy address is on no
# host: everyone's default route leads to the rewriter, which is where such an address lives.
#
#   topology.sh up PREFIX     makes the namespaces PREFIX-client, PREFIX-rewriter, …
#   topology.sh down PREFIX   ends what runs in them, and removes them
#   topology.sh sweep         removes what dead test runs left behind
set -euo pipefail

HOSTS=(client rewriter mirror1 mirror2 mirror3 origin)
NETNS=/run/netns
SCRATCH=${TMPDIR:-/tmp}

# new_host NAMESPACE SYSCTL=VALUE…
new_host() {
    local namespace=$1
    shift
    ip netns add "$namespace"
    # shellcheck disable=SC2016 # expanded by the inner shell
    ip netns exec "$namespace" bash -c '
        for setting; do echo "${setting#*=}" >"/proc/sys/net/${setting%%=*}"; done
    ' set-sysctls ipv6/conf/default/accept_dad=0 ipv6/conf/default/router_solicitations=0 "$@"
    ip -n "$namespace" link set lo up
}

# join_host NAME IP-COMMANDS-OF-THE-HOST IP-COMMANDS-OF-THE-REWRITER
join_host() {
    local name=$1 host=$PREFIX-$1 rewriter=$PREFIX-rewriter
    ip -n "$rewriter" link add "$name" type veth peer name eth0 netns "$host"
    ip -n "$host" -batch - <<<"link set eth0 up"$'\n'"$2"
    ip -n "$rewriter" -batch - <<<"link set $name up"$'\n'"$3"
}

up() {
    PREFIX=$1
    # Whatever fails half-way leaves nothing behind.
    trap 'down "$PREFIX"' EXIT
    local name
    for name in client mirror1 mirror2 mirror3 origin; do
        new_host "$PREFIX-$name"
    done
    new_host "$PREFIX-rewriter" \
        ipv4/ip_forward=1 ipv6/conf/all/forwarding=1 \
        ipv4/conf/all/rp_filter=1 ipv4/conf/default/rp_filter=1

    join_host client "
        addr add 10.1.0.2/24 dev eth0
        addr add 10.1.0.3/24 dev eth0
        addr add 1.2.3.4/32 dev eth0
        addr add 10.1.1.2/32 dev eth0
        addr add 10.1.2.2/32 dev eth0
        addr add fd00:1:1::2/128 dev eth0 nodad preferred_lft 0
        addr add fd00:1:2::2/128 dev eth0 nodad preferred_lft 0
        addr add fd00:1::3/64 dev eth0 nodad
        addr add fd00:1::2/64 dev eth0 nodad
        route add default via 10.1.0.1
        route add default via fd00:1::1" "
        addr add 10.1.0.1/24 dev client
        addr add fd00:1::1/64 dev client nodad
        route add 1.2.3.4 via 10.1.0.2
        route add 10.1.1.0/24 via 10.1.0.2
        route add 10.1.2.0/24 via 10.1.0.2
        route add fd00:1:1::/48 via fd00:1::2
        route add fd00:1:2::/48 via fd00:1::2"
    # Mirrors of one subnet, each on a link of its own: the rewriter routes to the host.
    join_host mirror1 "
        addr add 10.2.0.2/24 dev eth0
        addr add 123.45.67.89/32 dev eth0
        addr add fd00:2::2/64 dev eth0 nodad
        route add default via 10.2.0.1
        route add default via fd00:2::1" "
        addr add 10.2.0.1/32 dev mirror1
        addr add fd00:2::1/128 dev mirror1 nodad
        route add 10.2.0.2 dev mirror1
        route add fd00:2::2 dev mirror1
        route add 123.45.67.89 via 10.2.0.2"
    join_host mirror2 "
        addr add 10.2.0.3/24 dev eth0
        addr add fd00:2::3/64 dev eth0 nodad
        route add default via 10.2.0.1
        route add default via fd00:2::1" "
        addr add 10.2.0.1/32 dev mirror2
        addr add fd00:2::1/128 dev mirror2 nodad
        route add 10.2.0.3 dev mirror2
        route add fd00:2::3 dev mirror2"
    join_host mirror3 "
        addr add 10.2.0.4/24 dev eth0
        addr add fd00:2::4/64 dev eth0 nodad
        route add default via 10.2.0.1
        route add default via fd00:2::1" "
        addr add 10.2.0.1/32 dev mirror3
        addr add fd00:2::1/128 dev mirror3 nodad
        route add 10.2.0.4 dev mirror3
        route add fd00:2::4 dev mirror3"
    join_host origin "
        addr add 10.3.0.2/24 dev eth0
        addr add 100.100.100.100/32 dev eth0
        addr add fd00:3::2/64 dev eth0 nodad
        addr add fd00:100::100/128 dev eth0 nodad
        route add default via 10.3.0.1
        route add default via fd00:3::1" "
        addr add 10.3.0.1/24 dev origin
        addr add fd00:3::1/64 dev origin nodad
        route add 100.100.100.100 via 10.3.0.2
        route add fd00:100::100 via fd00:3::2"
    trap - EXIT
}

down() {
    local name namespace pids
    for name in "${HOSTS[@]}"; do
        namespace=$1-$name
        [[ -e $NETNS/$namespace ]] || continue
        # Whatever runs in a namespace of ours was started for it.
        mapfile -t pids < <(ip netns pids "$namespace" 2>/dev/null)
        ((${#pids[@]} == 0)) || kill -KILL "${pids[@]}" 2>/dev/null || true
        ip netns del "$namespace" 2>/dev/null || true
    done
}

# A test run's prefix is shunttest-PID.START-NUMBER; its scratch directory has the same name.
# START, the process's start time in the kernel's ticks, tells a dead run from a reused pid.
sweep() {
    local path prefix run pid stat
    for path in "$NETNS"/shunttest-*-rewriter "$NETNS"/shunttest-*-client "$SCRATCH"/shunttest-*; do
        [[ -e $path ]] || continue
        prefix=$(basename "$path")
        prefix=${prefix%-rewriter}
        prefix=${prefix%-client}
        run=${prefix#shunttest-}
        run=${run%-*}
        pid=${run%.*}
        # Field 22 of /proc/PID/stat, counted after the name, which may itself hold spaces.
        stat=$(cat "/proc/$pid/stat" 2>/dev/null) || stat=
        # shellcheck disable=SC2086 # split into fields
        set -- ${stat##*) }
        [[ ${20:-} != "${run#*.}" ]] || continue
        echo "removing $prefix, left by a run that died"
        down "$prefix"
        rm -rf -- "${SCRATCH:?}/$prefix"
    done
}

case ${1:-} in
    up | down) "$1" "${2:?PREFIX}" ;;
    sweep) sweep ;;
    *)
        echo "usage: topology.sh up PREFIX | down PREFIX | sweep" >&2
        exit 2
        ;;
esac
