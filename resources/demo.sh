#!/bin/sh
# The demo: boots a stock Debian kernel, makes a template, restores clones, and prints the figures.
# Run it with `make demo`, which builds what it needs.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
release=${CARGO_TARGET_DIR:-$root/target}/x86_64-unknown-linux-gnu/release
guest=$root/target/guests/linux-image-cloud-amd64
clones=10

main() {
    place=$(mktemp -d /tmp/minivmm-demo.XXXXXX)
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    export MINIVMM_STATE_DIR="$place/state" MINIVMM_STORE="$place/store"
    # Copies, because what comes over a shared directory would be timed as well.
    cp "$release/minivmm" "$guest/vmlinux" "$guest/initrd.img" "$place/"
    PATH=$place:$PATH

    say "minivmm run --kernel vmlinux --initrd initrd.img --mem 256M"
    minivmm run --kernel "$place/vmlinux" --initrd "$place/initrd.img" --mem 256M --id cold \
        --json >"$place/cold.json"
    minivmm rm -f cold >/dev/null

    say "minivmm template create base --kernel vmlinux --initrd initrd.img --mem 256M"
    minivmm template create base --kernel "$place/vmlinux" --initrd "$place/initrd.img" --mem 256M \
        --json >"$place/template.json"

    say "minivmm restore base, $clones times"
    for number in $(seq $clones); do
        minivmm restore base --id "clone-$number" --json >"$place/clone-$number.json"
    done
    minivmm ps

    say "minivmm exec clone-1 -- sh -c 'uname -sr; hostname; date -u; free -m'"
    minivmm exec clone-1 -- sh -c 'uname -sr; hostname; date -u; free -m'

    say "minivmm restore base --cpus 4 --mem 1280M"
    minivmm restore base --id grown --cpus 4 --mem 1280M --json >"$place/grown.json"
    minivmm exec grown -- sh -c 'nproc; free -m | head -n 2'

    warm_python

    say "the steps of a restore"
    timeline "$place/clone-$clones.json"

    echo
    figures
}

# A server in Python, started in a guest that has just booted, and one that came with the template
warm_python() {
    python=$root/target/guests/python
    [ -s "$python/initrd.img" ] || return 0
    cp "$python/vmlinux" "$place/python-vmlinux"
    cp "$python/initrd.img" "$place/python-initrd.img"
    set -- --kernel "$place/python-vmlinux" --initrd "$place/python-initrd.img" --mem 384M --timeout 300
    ask='until nc 127.0.0.1 8080 </dev/null 2>/dev/null | grep .; do sleep 0.05; done'

    say "minivmm run --kernel ... --mem 384M; exec -d python3 /srv/server.py; and its first answer"
    begin=$(now)
    minivmm run "$@" --id python-cold >/dev/null
    python_boot=$(($(now) - begin))
    minivmm exec -d python-cold -- python3 /srv/server.py
    minivmm exec python-cold -- sh -c "$ask"
    python_cold=$(($(now) - begin))
    minivmm rm -f python-cold >/dev/null

    say "minivmm template create python --warm 'exec python3 /srv/server.py' --ready port:8080"
    minivmm template create python "$@" --warm 'exec python3 /srv/server.py' --ready port:8080 \
        --ready-timeout 300

    say "minivmm restore python --id python-1; and its first answer"
    begin=$(now)
    minivmm restore python --id python-1
    python_restore=$(($(now) - begin))
    minivmm exec python-1 -- sh -c "$ask"
    python_warm=$(($(now) - begin))
}

# Milliseconds
now() {
    echo $(($(date +%s%N) / 1000000))
}

say() {
    printf '\n$ %s\n' "$*"
}

# FILE NAME: the number that a JSON file has under a name
number() {
    sed -n "s/^ *\"$2\": \([0-9]*\).*/\1/p" "$1" | head -n 1
}

timeline() {
    sed -n 's/^ *"step": "\(.*\)",/\1/p; s/^ *"at_ms": \([0-9.]*\).*/\1/p' "$1" |
        paste - - | awk -F '\t' '{ printf "  %8.1f ms  %s\n", $2, $1 }'
}

# The middle one of the clones' figures under a name
median() {
    for file in "$place"/clone-*.json; do number "$file" "$1"; done | sort -n | sed -n "$((clones / 2))p"
}

# Bytes that only this clone has: its anonymous memory, guest and VMM together
private_kib() {
    pid=$(number "$place/clone-$clones.json" pid)
    awk '/^Anonymous:/ { print $2 }' "/proc/$pid/smaps_rollup"
}

figures() {
    row "cold boot to first agent reply" "$(number "$place/cold.json" agent_ms) ms"
    row "template: saved, after the pause" "$(number "$place/template.json" save_ms) ms"
    row "template: published, checked and synced" "$(number "$place/template.json" publish_ms) ms"
    row "restore to first agent reply, median of $clones" "$(median agent_ms) ms"
    row "memory that one clone added" "$(private_kib) KiB"
    row "restore to 4 CPUs and 1 GiB more in use" "$(number "$place/grown.json" agent_ms) ms"
    if [ -n "${python_warm:-}" ]; then
        row "Python, cold: boot" "$python_boot ms"
        row "Python, cold: start, import, first answer" "$((python_cold - python_boot)) ms"
        row "Python, warm: restore" "$python_restore ms"
        row "Python, warm: first answer" "$((python_warm - python_restore)) ms"
    fi
    if [ -n "${MINIVMM_LAB:-}" ]; then
        echo
        echo "Measured in the lab, an emulated machine about 20 times slower than a real one."
    fi
}

row() {
    printf '  %-46s %12s\n' "$1" "$2"
}

clean_up() {
    for file in "$place"/state/vms/*/vm.json; do
        [ -e "$file" ] || continue
        "$place/minivmm" rm -f "$(basename "$(dirname "$file")")" >/dev/null || true
    done
    rm -rf "$place"
}

main
