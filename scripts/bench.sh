#!/usr/bin/env bash
# Shunt beside plain forwarding, nftables, HAProxy and nginx, on a network of namespaces; and the engine
# in memory. Installs what it needs, builds, and measures; progress goes to stderr.
#
#   scripts/bench.sh                  everything over the network, into docs/results/ (most of an hour)
#   scripts/bench.sh ARGUMENTS…       what shunt-bench --help says, e.g. --workload udp-1 --rounds 3
#   scripts/bench.sh splice           what moving live connections costs them, into docs/results/ (8 minutes)
#   scripts/bench.sh splice ARGUMENTS…    what splice-bench --help says
#   scripts/bench.sh monitor          what the monitor is worth to clients, into docs/results/ (half an hour)
#   scripts/bench.sh monitor ARGUMENTS…   what monitor-bench --help says
#   scripts/bench.sh naming           the naming server beside dnsmasq and unbound, into docs/results/ (5 minutes)
#   scripts/bench.sh naming ARGUMENTS…    what scripts/naming-bench.sh says, e.g. --rounds 1 --seconds 1
#   scripts/bench.sh memory           the engine in memory, by criterion
#   scripts/bench.sh instructions     how many instructions a packet takes, by callgrind
#
# Nothing else should run on the machine meanwhile.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

PACKAGES=(
    "${LAB_PACKAGES[@]}" nft:nftables haproxy:haproxy wrk:wrk iperf3:iperf3 ss:iproute2
)
STREAM_MODULE=/usr/lib/nginx/modules/ngx_stream_module.so

# instructions TASK TIMES CONNECTIONS: instructions for each packet; what the preparation takes is in both
# runs, and cancels out.
instructions() {
    local task=$1 times=$2 connections=$3 counts=() run
    for run in 1 2; do
        counts+=("$(valgrind --tool=callgrind --callgrind-out-file=/dev/null \
            "$TARGET/release/engine-work" "$task" $((run * times)) --connections "$connections" 2>&1 |
            sed -n 's/.*Collected : //p')")
    done
    printf '%-10s %9d connections: %5d instructions a packet\n' "$task" "$connections" \
        $(((counts[1] - counts[0]) / times))
}

TARGET=$(realpath -m "${CARGO_TARGET_DIR:-$ROOT/target}")
need_cargo
case ${1:-} in
    memory)
        shift
        exec cargo bench --locked -p benches --bench engine -- "$@"
        ;;
    instructions)
        ensure_packages valgrind:valgrind
        cargo build --release --locked -p benches --bin engine-work
        instructions translate 100000 1000
        instructions translate 100000 100000
        exit
        ;;
    naming)
        shift
        ((EUID == 0)) || die "only root may lay out networks: run as root"
        ensure_packages ip:iproute2 ss:iproute2 dnsperf:dnsperf dnsmasq:dnsmasq-base unbound:unbound nsd:nsd
        cargo build --release --locked -p naming -p control-cli
        (($#)) || set -- --out docs/results/naming.md
        exec scripts/naming-bench.sh "$@"
        ;;
esac

((EUID == 0)) || die "only root may lay out networks: run as root"
ensure_packages "${PACKAGES[@]}"
[[ -e $STREAM_MODULE ]] || ensure_packages "no-such-command:libnginx-mod-stream"
cargo build --release --locked -p rewriter -p control-cli -p monitor -p scenarios -p benches
trap '"$ROOT/scripts/topology.sh" sweep' EXIT
program=shunt-bench
if [[ ${1:-} =~ ^(splice|monitor)$ ]]; then
    program=$1-bench
    shift
fi
(($#)) || set -- --out docs/results
"$TARGET/release/$program" "$@"
