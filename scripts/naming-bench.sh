#!/usr/bin/env bash
# The naming server beside dnsmasq and unbound: queries a second, and the processor time that each takes. Called by
# `scripts/bench.sh naming`, which builds and installs what is needed.
#
#   scripts/naming-bench.sh [--rounds N] [--seconds N] [--out FILE]
#
# In the lab: dnsperf on the client, the servers on the rewriter's host, NSD on the origin as the DNS behind them.
# All run at once, but only one is asked at a time; each round asks all, in turn.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ROUNDS=5
SECONDS_EACH=5
OUT=
while (($#)); do
    case $1 in
        --rounds) ROUNDS=$2 ;;
        --seconds) SECONDS_EACH=$2 ;;
        --out) OUT=$2 ;;
        *) die "unknown: $1" ;;
    esac
    shift 2
done

PREFIX=shuntbench-naming
DIR=/run/$PREFIX
NAMES=1000
HOSTS=10000
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-$ROOT/target}")
PIDS=()

# on HOST COMMAND…
on() {
    local host=$1
    shift
    ip netns exec "$PREFIX-$host" "$@"
}

clean_up() {
    if ((${#PIDS[@]})); then
        kill "${PIDS[@]}" 2>/dev/null || true
        wait "${PIDS[@]}" 2>/dev/null || true
    fi
    "$ROOT/scripts/topology.sh" down "$PREFIX"
    rm -rf -- "$DIR"
}

# start NAME COMMAND…: on the rewriter's host; its process is in PID_OF[NAME].
declare -A PID_OF
start() {
    local name=$1
    shift
    ip netns exec "$PREFIX-rewriter" "$@" &>"$DIR/$name.log" &
    PID_OF[$name]=$!
    PIDS+=($!)
}

# The same thousand names for each server's own table, and ten thousand others behind them.
files() {
    awk -v names="$NAMES" -v dir="$DIR" 'BEGIN {
        for (n = 0; n < names; n++) {
            address = "10.9." int(n / 250) "." n % 250 + 1
            print "n" n ".own.test A" >(dir "/own")
            print "n" n ".own.test. 5 IN A " address >(dir "/own.zone")
            print address " n" n ".own.test" >(dir "/own.hosts")
            print "    local-data: \"n" n ".own.test. 5 A " address "\"" >(dir "/own.unbound")
        }
    }'
    awk -v hosts="$HOSTS" -v dir="$DIR" 'BEGIN {
        print "$ORIGIN other.test.\n@ 300 IN SOA ns hostmaster 1 2 3 4 5\n@ 300 IN NS ns\nns 300 IN A 10.3.0.2" >(dir "/other.zone")
        for (n = 0; n < hosts; n++) {
            print "h" n " 300 IN A 192.0.2." n % 250 + 1 >(dir "/other.zone")
            print "h" n ".other.test A" >(dir "/other")
        }
    }'
    cat >"$DIR/nsd.conf" <<EOF
server:
    server-count: 1
    username: root
    ip-address: 10.3.0.2
    zonesdir: $DIR
    database: ""
    pidfile: $DIR/nsd.pid
    xfrdfile: $DIR/xfrd.state
    zonelistfile: $DIR/zone.list
    xfrdir: $DIR
    rrl-ratelimit: 0
remote-control:
    control-enable: no
zone:
    name: other.test
    zonefile: other.zone
EOF
    local kind ttl port
    for kind in forwarding caching; do
        port=5304 ttl=0
        [[ $kind == forwarding ]] || port=5305 ttl=3600
        cat >"$DIR/unbound-$kind.conf" <<EOF
server:
    interface: 10.1.0.1
    port: $port
    access-control: 10.1.0.0/24 allow
    num-threads: $(nproc)
    so-reuseport: yes
    outgoing-range: 4096
    num-queries-per-thread: 4096
    cache-max-ttl: $ttl
    module-config: iterator
    local-zone: "test." nodefault
    do-daemonize: no
    username: ""
    chroot: ""
    pidfile: ""
    use-syslog: no
    include: "$DIR/own.unbound"
forward-zone:
    name: "."
    forward-addr: 10.3.0.2
EOF
    done
}

servers() {
    local dnsmasq=(
        dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file=
        --log-facility=- --listen-address=10.1.0.1 --bind-interfaces "--addn-hosts=$DIR/own.hosts" --local-ttl=5
        --server=10.3.0.2 --dns-forward-max=10000
    )
    ip netns exec "$PREFIX-origin" nsd -d -c "$DIR/nsd.conf" &>"$DIR/nsd.log" &
    PIDS+=($!)
    wait_for "NSD" listens "$PREFIX-origin" udp 53
    start naming "$TARGET/release/shunt-naming" --listen 10.1.0.1:5301 --upstream 10.3.0.2 \
        --socket "$DIR/naming.sock" --state "$DIR/naming.json" --rate-limit off
    start dnsmasq-forwarding "${dnsmasq[@]}" --port=5302 --cache-size=0
    start dnsmasq-caching "${dnsmasq[@]}" --port=5303 --cache-size=10000
    start unbound-forwarding unbound -d -c "$DIR/unbound-forwarding.conf"
    start unbound-caching unbound -d -c "$DIR/unbound-caching.conf"
    local port
    for port in 5301 5302 5303 5304 5305; do
        wait_for "a server at port $port" listens "$PREFIX-rewriter" udp "$port"
    done
    "$TARGET/release/shuntctl" name --naming "$DIR/naming.sock" import "$DIR/own.zone" >/dev/null
}

# ticks PID: processor time of a process so far, user's and system's, in the kernel's ticks.
ticks() {
    local stat
    stat=$(<"/proc/$1/stat")
    # shellcheck disable=SC2086 # split into fields
    set -- ${stat##*) }
    echo $((${12} + ${13}))
}

# measure WORKLOAD SERVER ADDRESS PORT: a line of workload, server, queries a second, µs of processor a query, lost.
measure() {
    local workload=$1 server=$2 address=$3 port=$4 before=0 after=0 report
    [[ -z ${PID_OF[$server]:-} ]] || before=$(ticks "${PID_OF[$server]}")
    report=$(on client dnsperf -s "$address" -p "$port" -d "$DIR/$workload" -l "$SECONDS_EACH" \
        -c 20 -T "$(nproc)" -q 500 2>&1)
    [[ -z ${PID_OF[$server]:-} ]] || after=$(ticks "${PID_OF[$server]}")
    awk -v workload="$workload" -v server="$server" -v ticks=$((after - before)) -v hertz="$(getconf CLK_TCK)" '
        /Queries per second/ { rate = $NF }
        /Queries completed/ { completed = $3 }
        /Queries lost/ { lost = $3 }
        /Response codes/ && !/NOERROR/ { wrong = 1 }
        END {
            if (!completed || wrong) exit 1
            printf "%s\t%s\t%.0f\t%.2f\t%d\n", workload, server, rate, ticks / hertz * 1e6 / completed, lost
        }
    ' <<<"$report" || die "$server answered wrongly: $report"
}

# table WORKLOAD: the medians of a workload, and of the ratios to dnsmasq's rate in the same round.
table() {
    awk -F '\t' -v workload="$1" -v base="dnsmasq-forwarding" '
        function median(list, n,    i, j, swap) {
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && list[j] + 0 < list[j - 1] + 0; j--) {
                    swap = list[j]; list[j] = list[j - 1]; list[j - 1] = swap
                }
            return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
        }
        $1 == workload {
            if (!($2 in count)) order[++servers] = $2
            round = ++count[$2]
            rate[$2, round] = $3; cost[$2, round] = $4; lost[$2] += $5
        }
        END {
            print "| server | queries a second | beside dnsmasq | processor time a query | lost |"
            print "|---|---|---|---|---|"
            for (s = 1; s <= servers; s++) {
                server = order[s]; n = count[server]
                split("", r); split("", c); split("", q)
                for (i = 1; i <= n; i++) {
                    r[i] = rate[server, i]; c[i] = cost[server, i]; q[i] = rate[server, i] / rate[base, i]
                }
                processor = server == "nsd" ? "" : sprintf("%.1f µs", median(c, n))
                printf "| %s | %d | %.2f | %s | %d |\n", server, median(r, n), median(q, n), processor, lost[server]
            }
        }
    ' "$DIR/results"
}

((EUID == 0)) || die "only root may lay out networks: run as root"
trap clean_up EXIT
"$ROOT/scripts/topology.sh" down "$PREFIX"
mkdir -p "$DIR"
"$ROOT/scripts/topology.sh" up "$PREFIX"
files
servers
read -r LOAD _ </proc/loadavg
SERVERS=(naming:5301 dnsmasq-forwarding:5302 dnsmasq-caching:5303 unbound-forwarding:5304 unbound-caching:5305)
for ((round = 1; round <= ROUNDS; round++)); do
    say "round $round of $ROUNDS" >&2
    for workload in own other; do
        for server in "${SERVERS[@]}"; do
            # For their own names it makes no difference whether they cache.
            [[ $workload == own && $server == *caching* ]] && continue
            measure "$workload" "${server%:*}" 10.1.0.1 "${server#*:}" | tee -a "$DIR/results" >&2
        done
        [[ $workload == own ]] || measure other nsd 10.3.0.2 53 | tee -a "$DIR/results" >&2
    done
done
report() {
    cat <<EOF
# Results: the naming server

Made by \`scripts/bench.sh naming\`: medians of $ROUNDS rounds of $SECONDS_EACH s each, on Linux $(uname -r) with $(nproc) cores, $(date -u +%F).
Load of the machine in the minute before the first round: $LOAD. Where that is much, others used it too, and the ratios count more
than the rates.

In the lab, dnsperf (20 sockets, $(nproc) threads, 500 queries under way) asks from the client over a veth link; the servers run on the
rewriter's host, and NSD on the origin is the DNS behind them. All run at once, but one is asked at a time; each round asks
all, in turn, and *beside dnsmasq* is the median of the ratios within the rounds. Processor time is the server's own, user's and
system's. dnsperf, the server and NSD share the cores, so the rate is bounded by all of them together. *Lost* is what dnsperf gave up
in all rounds: at its start it sends 500 queries at once.

## Own names

$NAMES names with an address each: \`name import\`, \`--addn-hosts\`, \`local-data\`.

EOF
    table own
    cat <<EOF

## Passed names

$HOSTS names of NSD's zone. *Forwarding* is without a cache, as the naming server has none; *caching* answers from its cache from the second
time on, and asks nobody. *nsd* is NSD asked directly.

EOF
    table other
    cat <<EOF

Versions: $(dnsmasq --version | sed -n '1s/  .*//p'), $(unbound -V | sed -n '1s/Version/unbound/p'), $(nsd -v 2>&1 | sed -n 1p),
dnsperf $(dpkg-query --show --showformat='${Version}' dnsperf).
EOF
}
report
[[ -z $OUT ]] || report >"$OUT"
