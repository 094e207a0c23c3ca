#!/usr/bin/env bash
# Everything that must hold, a stage each: installs what it needs, runs the stages, and ends with
# one line, "N passed, N failed". A stage counts its tests, or itself as one.
#
#   scripts/test.sh                  all stages
#   scripts/test.sh STAGE…           only these, e.g.: scripts/test.sh unit scenarios
#
# Stages: fmt clippy build unit doc deny scripts fuzz bench scenarios
#
# FUZZ_SECONDS   how long each fuzz target runs (60)
# Without root, what needs it runs inside a user namespace.
# shellcheck disable=SC2317 # stages are called by their names
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

STAGES=(fmt clippy build unit doc deny scripts fuzz bench scenarios)
CARGO_DENY=0.20.2
CARGO_FUZZ=0.13.2
FUZZ_SECONDS=${FUZZ_SECONDS:-60}

PACKAGES=(
    "${LAB_PACKAGES[@]}" nft:nftables wrk:wrk iperf3:iperf3 dig:bind9-dnsutils dnsmasq:dnsmasq-base
    ss:iproute2 shellcheck:shellcheck traceroute:traceroute tracepath:iputils-tracepath mtr:mtr-tiny
    sshd:openssh-server ssh:openssh-client redis-server:redis-server redis-cli:redis-tools
    openssl:openssl nfs-cp:libnfs-utils ganesha.nfsd:nfs-ganesha-vfs rpcbind:rpcbind tc:iproute2
    websocketd:websocketd aiosmtpd:python3-aiosmtpd faketime:faketime
    nsd:nsd ldns-signzone:ldnsutils javac:default-jdk-headless
)

# as_root COMMAND…: as we are when root, otherwise inside a user namespace.
as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        (enter_userns "$@")
    fi
}

# cargo_tool NAME VERSION: installs `cargo NAME` unless it is there.
cargo_tool() {
    cargo "$1" --version &>/dev/null || {
        say "installing cargo-$1 $2"
        cargo install --locked --quiet "cargo-$1@$2"
    }
}

stage_fmt() { cargo fmt --all --check; }

stage_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

# The scenarios run the daemon as it is shipped; everything else is quicker without optimisation.
stage_build() {
    cargo build --release --locked -p rewriter -p control-cli -p monitor -p naming
    cargo test --workspace --locked --no-run
}

# Unit, property and documentation tests.
stage_unit() { as_root cargo test --workspace --exclude scenarios --locked --no-fail-fast; }

stage_doc() { RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked; }

stage_deny() {
    cargo_tool deny "$CARGO_DENY"
    cargo deny --all-features --locked check --hide-inclusion-graph bans licenses sources
    # The advisories are a repository on the network, which may be out of reach.
    if cargo deny fetch db &>/dev/null; then
        cargo deny --all-features --locked check --hide-inclusion-graph advisories
    else
        say "SKIPPED: advisories; their database can't be reached"
    fi
}

stage_scripts() {
    shellcheck -x scripts/*.sh .ci/run
    bash -n scripts/*.sh .ci/run
}

stage_fuzz() {
    [[ -f fuzz/Cargo.toml ]] || {
        say "SKIPPED: there are no fuzz targets yet"
        return
    }
    cargo_tool fuzz "$CARGO_FUZZ"
    local target
    for target in $(cargo fuzz list); do
        say "fuzzing $target for $FUZZ_SECONDS s"
        # Without a sanitizer the stable toolchain will do; panics and overflows are found all the same.
        cargo fuzz run --sanitizer none "$target" -- \
            -max_total_time="$FUZZ_SECONDS" -print_final_stats=1
    done
}

# Whether the benches still work; they measure nothing here.
stage_bench() {
    if ((EUID != 0)) || in_userns; then
        say "SKIPPED: the bench needs root"
        return
    fi
    scripts/bench.sh --quick
    scripts/bench.sh splice --quick
    scripts/bench.sh monitor --quick
    scripts/bench.sh naming --rounds 1 --seconds 1
}

stage_scenarios() {
    local target name status=0
    need_captures
    target=$(realpath -m "${CARGO_TARGET_DIR:-$ROOT/target}")
    cargo build --release --locked -p rewriter -p control-cli -p monitor -p naming
    cargo test --locked -p scenarios --no-run
    export SHUNTD=$target/release/shuntd SHUNTCTL=$target/release/shuntctl
    export SHUNT_MONITOR_BIN=$target/release/shunt-monitor
    export SHUNT_NAMING_SERVER=$target/release/shunt-naming
    # Not local: they are needed when this stage's subshell ends.
    first=$(mktemp) again=$(mktemp)
    trap 'rm -f "$first" "$again"' EXIT
    run_scenarios 2>&1 | tee "$first" && return

    # Real programs meet real clocks here, on machines that may be busy with something else: one that
    # failed gets a second chance, by itself, and is named in the summary. A second failure counts.
    mapfile -t failed < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$first" | sort -u)
    ((${#failed[@]})) || return 1
    say "once more, alone: ${failed[*]}"
    # (The summary counts the results of the first run.)
    run_scenarios --exact --test-threads=1 "${failed[@]}" 2>&1 |
        tee "$again" | sed 's/^test result:/result:/' || true
    for name in "${failed[@]}"; do
        if grep -qxF "test $name ... ok" "$again" &&
            ! grep -qxF "test $name ... FAILED" "$again"; then
            echo "flaky: $name"
        else
            status=1
        fi
    done
    return "$status"
}

# run_scenarios ARGUMENTS…: all of them, or those that the test runner's arguments name.
run_scenarios() {
    as_root env SHUNTD="$SHUNTD" SHUNTCTL="$SHUNTCTL" SHUNT_MONITOR_BIN="$SHUNT_MONITOR_BIN" \
        SHUNT_NAMING_SERVER="$SHUNT_NAMING_SERVER" \
        cargo test --locked -p scenarios --no-fail-fast -- "$@"
}

# summary LOG: how many tests passed and failed in cargo's own words, and the stages without tests.
# What failed at first and passed by itself has passed.
summary() {
    awk '
        /^test result: / { passed += $4; failed += $6 }
        /^flaky: / { passed++; failed--; broken-- }
        /^stage passed: / && !tested { passed += 1 }
        /^stage failed: / && !broken { failed += 1 }
        /^stage (passed|failed): / { tested = 0; broken = 0; next }
        /^test result: / { tested += $4 + $6; broken += $6 }
        END { printf "%d passed, %d failed\n", passed, failed }
    ' "$1"
}

# run_stage NAME: under a heading, into the log, with its time.
run_stage() {
    local began=$SECONDS status
    shout "$1"
    # A subshell of its own, outside of any condition, so that `set -e` holds within.
    set +e
    (
        set -e
        "stage_$1"
    ) 2>&1 | tee -a "$LOG"
    status=${PIPESTATUS[0]}
    set -e
    if ((status == 0)); then
        TIMES+=("$(printf '%-10s ok      %4d s' "$1" $((SECONDS - began)))")
        echo "stage passed: $1" >>"$LOG"
    else
        TIMES+=("$(printf '%-10s FAILED  %4d s' "$1" $((SECONDS - began)))")
        echo "stage failed: $1" >>"$LOG"
        FAILED=1
    fi
}

# clean_up: what an interrupted scenario left, and the log.
clean_up() {
    as_root "$ROOT/scripts/topology.sh" sweep
    rm -f "$LOG"
}

for stage in "$@"; do
    [[ " ${STAGES[*]} " == *" $stage "* ]] || die "no stage '$stage'; there are: ${STAGES[*]}"
done
(($#)) || set -- "${STAGES[@]}"

shout "tools"
need_cargo
# A module of Python has no command to tell whether it is there.
/usr/bin/python3 -c "import websockets" &>/dev/null || PACKAGES+=(no-such-command:python3-websockets)
ensure_packages "${PACKAGES[@]}"

LOG=$(mktemp)
FAILED=0
TIMES=()
trap clean_up EXIT
trap 'exit 130' INT TERM
for stage in "$@"; do
    run_stage "$stage"
done

shout "summary"
printf '%s\n' "${TIMES[@]}"
grep '^flaky: ' "$LOG" || true
summary "$LOG"
exit "$FAILED"
