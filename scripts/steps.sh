# Sourced by the scripts that do several things in a row: `step NAME COMMAND…` runs one, prints how long it
# took and ends the script when it fails; `total` prints the sum.

steps_started=$SECONDS

step() {
    local name="$1" started=$SECONDS
    shift
    echo "==> $name"
    if ! "$@"; then
        echo "==> $name: FAILED after $((SECONDS - started)) s" >&2
        exit 1
    fi
    echo "==> $name: $((SECONDS - started)) s"
}

total() {
    echo "==> all of $1: $((SECONDS - steps_started)) s"
}
