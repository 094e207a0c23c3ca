#!/usr/bin/env bash
# Shunt at work, in two minutes: installs what it needs, builds, lays out a lab of network
# namespaces, and shows the patent's figure 3 with real packets; then a web client whose service
# moves from server to server while it notices nothing, in the end by itself. Each step is checked; the last line says so.
#
#   scripts/demo.sh
#
# Needs Debian (or the programs it names), a Rust toolchain, and root or user namespaces.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

PREFIX=shuntdemo
SERVICE=100.100.100.100
BIN=${CARGO_TARGET_DIR:-$ROOT/target}/release
STEPS=0

# step TITLE
step() {
    STEPS=$((STEPS + 1))
    shout "$STEPS. $*"
}

# on HOST COMMAND…: runs it there.
on() { ip netns exec "$PREFIX-$1" "${@:2}"; }

# spawn HOST COMMAND…: runs it there in the background; $! is the program itself.
spawn() { ip netns exec "$PREFIX-$1" "${@:2}" & }

# show COMMAND…: prints the command, then runs it.
show() {
    printf '$ %s\n' "${*/#"$BIN/"/}"
    "$@"
}

# seen WHAT: it works.
seen() { printf '  ✓ %s\n' "$*"; }

# expect WHAT ACTUAL EXPECTED: it is seen working, or the demo fails.
expect() {
    [[ $2 == "$3" ]] || die "$1: expected '$3', saw '$2'"
    seen "$1: $2"
}

# page [CURL-ARGUMENTS…]: what the service's web page says to the client.
page() { on client curl -sS --max-time 5 "$@" "http://$SERVICE/"; }

# ctl WORDS…: prints and runs shuntctl.
ctl() { show "$BIN/shuntctl" "$@"; }

# start_shuntd FLAGS…
start_shuntd() {
    printf '$ shuntd %s &\n' "$*"
    spawn rewriter "$BIN/shuntd" "$@" &>>"$FILES/shuntd.log"
    SHUNTD=$!
    wait_for "shuntd answers (see $FILES/shuntd.log)" "$BIN/shuntctl" version
}

# stop_shuntd: by SIGTERM; it must end with 0.
stop_shuntd() {
    local status=0
    kill -TERM "$SHUNTD"
    wait "$SHUNTD" || status=$?
    SHUNTD=
    expect "shuntd's exit code after SIGTERM" "$status" 0
}

# capture INTERFACE FILTER…: tcpdump on the rewriter, both directions to a file each.
capture() {
    local interface=$1 way
    for way in in out; do
        spawn rewriter tcpdump -Z root -i "$interface" -Q "$way" -nn --immediate-mode -U \
            -w "$FILES/$interface.$way.pcap" "${@:2}" 2>"$FILES/$interface.$way.log"
        CAPTURES+=($!)
        wait_for "tcpdump on $interface" grep -q "listening on" "$FILES/$interface.$way.log"
    done
}

# end_captures: so that the files are complete.
end_captures() {
    sleep 0.2
    # Not SIGINT, which the shell has its background programs ignore.
    kill -TERM "${CAPTURES[@]}"
    wait "${CAPTURES[@]}"
    CAPTURES=()
}

# first_packet INTERFACE in|out: its ends, as figure 3 writes them.
first_packet() {
    tcpdump -nn -q -r "$FILES/$1.$2.pcap" -c 1 2>/dev/null |
        sed -E 's/.* IP ([0-9.]+)\.([0-9]+) > ([0-9.]+)\.([0-9]+): .*/\1:\2 to \3:\4/'
}

# rules: what a rewriter may change on its host.
# shellcheck disable=SC2016 # expanded on the rewriter
rules() { on rewriter sh -c 'for f in -4 -6; do ip $f rule; ip $f route show table all; done'; }

# clean_up: whatever happened, nothing of ours stays.
clean_up() {
    local status=$?
    trap - EXIT
    if ((status != 0)) && [[ -s $FILES/shuntd.log ]]; then
        tail -n 20 "$FILES/shuntd.log" >&2
    fi
    disown -a
    lab_down "$PREFIX"
    exit "$status"
}

if ! in_userns; then
    need_captures
    need_cargo
    ensure_packages "${LAB_PACKAGES[@]}"
    say "building Shunt (cargo build --release)"
    build_programs
fi
need_root_or_userns "$ROOT/scripts/demo.sh" "$@"

FILES=/run/$PREFIX-lab/demo
CAPTURES=()
SHUNTD=
trap clean_up EXIT
trap 'exit 130' INT TERM
export SHUNT_SOCKET=$FILES/control.sock SHUNT_MONITOR=$FILES/monitor.sock

step "The lab: a client, a rewriter, two mirrors, and the original service $SERVICE"
say "making the namespaces $PREFIX-client, -rewriter, -mirror1, -mirror2, -mirror3, -origin"
lab_up "$PREFIX"
mkdir "$FILES"
for host in mirror1 mirror2; do
    (on "$host" socat TCP-LISTEN:7,fork,reuseaddr \
        SYSTEM:"echo ${host/mirror/mirror }; exec cat" &>"$FILES/$host.log" </dev/null &)
    wait_for "socat on $host" listens "$PREFIX-$host" tcp 7
done
expect "without Shunt, the page comes from" "$(page)" origin
BEFORE=$(rules)

step "Figure 3 of WO 00/33536: one proxy port, 513, so that the picture is the patent's"
start_shuntd --socket "$SHUNT_SOCKET" --proxy 10.10.10.10 --proxy-ports 513-513 --workers 1
ctl divert "$SERVICE:80" 123.45.67.89:80
capture client tcp port 80
capture mirror1 tcp port 80
expect "the page comes from" "$(page --interface 1.2.3.4 --local-port 3456)" "mirror 1"
end_captures
echo "  tcpdump on the rewriter's two sides, the connection's first packet each way:"
expect "event 2, received from the client" "$(first_packet client in)" \
    "1.2.3.4:3456 to 100.100.100.100:80"
expect "event 3, sent to the mirror" "$(first_packet mirror1 out)" \
    "10.10.10.10:513 to 123.45.67.89:80"
expect "event 5, received from the mirror" "$(first_packet mirror1 in)" \
    "123.45.67.89:80 to 10.10.10.10:513"
expect "event 6, sent to the client" "$(first_packet client out)" \
    "100.100.100.100:80 to 1.2.3.4:3456"
stop_shuntd

step "Divert: a web client is answered by a mirror it has never heard of"
start_shuntd --socket "$SHUNT_SOCKET" --proxy 10.10.10.10 --proxy fd00:10::10
ctl divert "$SERVICE" 10.2.0.2
expect "http://$SERVICE/ comes from" "$(page)" "mirror 1"
ctl divert fd00:100::100 fd00:2::2
expect "http://[fd00:100::100]/ comes from" \
    "$(on client curl -sS --max-time 5 'http://[fd00:100::100]/')" "mirror 1"

step "Redirect: the same service is answered by the other mirror"
ctl redirect "$SERVICE" 10.2.0.3
expect "http://$SERVICE/ comes from" "$(page)" "mirror 2"
expect "nginx on mirror 2 was asked by" \
    "$(cut -d' ' -f1 "/run/$PREFIX-lab/mirror2/access.log" | sort -u)" 10.10.10.10

step "Redirect a live TCP connection: it goes on at the other mirror, and the client doesn't notice"
rm -f "$FILES/redirected"
spawn client bash -c "
    exec 3<>/dev/tcp/$SERVICE/80
    ask() {
        printf 'GET / HTTP/1.1\r\nHost: shunt\r\n\r\n' >&3
        while read -r -t 10 line <&3; do
            [[ \$line == mirror* ]] && { echo \"\$line\"; return; }
        done
    }
    ask
    until [[ -e $FILES/redirected ]]; do sleep 0.05; done
    ask
" >"$FILES/asked"
ASKER=$!
wait_for "the first answer" grep -q mirror "$FILES/asked"
ctl redirect --no-wait "$SERVICE" 10.2.0.2
touch "$FILES/redirected"
wait "$ASKER" || true
expect "two requests on one connection were answered by" \
    "$(paste -sd, "$FILES/asked")" "mirror 2,mirror 1"
ctl redirects
ctl redirect --no-wait "$SERVICE" 10.2.0.3

step "Redirect in the middle of a TCP connection by reset: the client comes back at once"
spawn client bash -c "exec cat <>/dev/tcp/$SERVICE/7" >"$FILES/talk" 2>"$FILES/talk.err"
TALK=$!
wait_for "the server's greeting" grep -q mirror "$FILES/talk"
expect "a connection is open to" "$(<"$FILES/talk")" "mirror 2"
ctl redirect --tcp reset "$SERVICE" 10.2.0.2
timeout 1 tail --pid="$TALK" -s 0.02 -f /dev/null || die "the client hasn't noticed within a second"
wait "$TALK" || true
expect "within a second the client's program said" "$(<"$FILES/talk.err")" \
    "cat: -: Connection reset by peer"
expect "its next connection is open to" \
    "$(on client timeout 5 bash -c "head -n 1 <>/dev/tcp/$SERVICE/7")" "mirror 1"

step "Redirect in the middle of a ping: it moves at once, and nothing is lost"
capture mirror2 'icmp[icmptype] == icmp-echo'
spawn client ping -i 0.01 -c 200 -W 1 "$SERVICE" >"$FILES/ping"
PING=$!
sleep 1
ctl redirect "$SERVICE/icmp" 10.2.0.3
wait "$PING" || true
end_captures
expect "of 200 pings were answered" "$(grep -o '[0-9]* received' "$FILES/ping")" "200 received"
MOVED=$(tcpdump -nn -r "$FILES/mirror2.out.pcap" 2>/dev/null | wc -l)
((MOVED > 20 && MOVED < 180)) || die "mirror 2 answered $MOVED of 200 pings"
seen "mirror 1 answered $((200 - MOVED)) of them, mirror 2 the other $MOVED"

step "What Shunt says about it"
ctl list
ctl connections
ctl stats
expect "it has translated packets in both directions" "$("$BIN/shuntctl" --json stats |
    jq '.total | .translated_forward.packets > 0 and .translated_reverse.packets > 0')" true

step "The network monitor: a mirror dies, and its clients are elsewhere before anybody knows"
cat >"$FILES/monitor.toml" <<EOF
socket = "$SHUNT_MONITOR"
interval = "1s"
[[rewriter]]
name = "rewriter"
socket = "$SHUNT_SOCKET"
[[mirror]]
name = "mirror 1"
address = "10.2.0.2"
[[mirror]]
name = "mirror 2"
address = "10.2.0.3"
[[service]]
address = "$SERVICE:80/tcp"
mirrors = ["mirror 1", "mirror 2"]
EOF
show "$BIN/shunt-monitor" check --config "$FILES/monitor.toml"
echo "$ shunt-monitor run --config $FILES/monitor.toml &"
spawn rewriter "$BIN/shunt-monitor" run --config "$FILES/monitor.toml" &>"$FILES/monitor.log"
MONITOR=$!
wait_for "the monitor diverts the service (see $FILES/monitor.log)" \
    grep -q "start:" "$FILES/monitor.log"
ctl mirrors
mapfile -t SERVERS < <(ip netns pids "$PREFIX-mirror1")
kill -KILL "${SERVERS[@]}"
for _ in {1..50}; do page || true; done >"$FILES/pages" 2>&1
expect "of 50 requests just after mirror 1's servers were killed were answered by mirror 2" \
    "$(grep -cx 'mirror 2' "$FILES/pages")" 50
wait_for "the monitor takes mirror 1 out" grep -q "failover:" "$FILES/monitor.log"
ctl decisions
expect "mirror 1 is" "$("$BIN/shuntctl" --json mirrors | jq -r '.mirrors[0].state')" down
kill -TERM "$MONITOR"
wait "$MONITOR" || die "the monitor ended with $?"
expect "without the monitor, its last instructions stand: the page comes from" "$(page)" "mirror 2"

step "Restore, and end: as if it had never been there"
ctl restore "$SERVICE"
ctl restore "$SERVICE/icmp"
ctl restore "$SERVICE:80/tcp"
expect "http://$SERVICE/ comes from" "$(page)" origin
stop_shuntd
expect "rules and routes that differ from before" "$(diff <(echo "$BEFORE") <(rules) | wc -l)" 0

echo
echo "demo: all $STEPS steps seen working"
