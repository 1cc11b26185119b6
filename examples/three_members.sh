#!/usr/bin/env bash
# Three members on this machine, driven with etcdctl: start, write, kill one with SIGKILL, read, bring it back, stop.
#
#   examples/three_members.sh [DIRECTORY]
#
# OARLOCK and ETCDCTL name the programs; BASE_PORT is the first of six ports (default 23790).
set -euo pipefail

oarlock=${OARLOCK:-oarlock}
etcdctl=${ETCDCTL:-etcdctl}
base=${BASE_PORT:-23790}
directory=${1:-$(mktemp -d)}

declare -A pid
client() { echo "http://127.0.0.1:$((base + $1))"; }
peer() { echo "http://127.0.0.1:$((base + 3 + $1))"; }
cluster="n0=$(peer 0),n1=$(peer 1),n2=$(peer 2)"

start() {
  $oarlock serve --name "n$1" --data-dir "$directory/n$1" \
    --listen-client-urls "$(client "$1")" --advertise-client-urls "$(client "$1")" \
    --listen-peer-urls "$(peer "$1")" --initial-advertise-peer-urls "$(peer "$1")" \
    --initial-cluster "$cluster" >>"$directory/n$1.out" 2>>"$directory/n$1.log" &
  pid[$1]=$!
}
healthy() {  # wait until the member answers, but not for ever
  for _ in $(seq 100); do
    if ! kill -0 "${pid[$1]}" 2>/dev/null; then break; fi
    if $etcdctl --endpoints="$(client "$1")" endpoint health >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  echo "member n$1 is not healthy; the end of its log:" >&2
  tail -n 20 "$directory/n$1.log" >&2
  exit 1
}
trap 'kill -9 "${pid[@]}" 2>/dev/null || true' EXIT

for number in 0 1 2; do start $number; done
for number in 0 1 2; do healthy $number; done
$etcdctl --endpoints="$(client 0)" member list -w table

echo "a write at n0, a read at n2:"
$etcdctl --endpoints="$(client 0)" put greeting hello
$etcdctl --endpoints="$(client 2)" get greeting

echo "n0 is killed; two of three go on:"
kill -9 "${pid[0]}"
wait "${pid[0]}" 2>/dev/null || true
healthy 1
$etcdctl --endpoints="$(client 1),$(client 2)" put greeting "good day"

echo "n0 comes back and catches up:"
start 0
healthy 0
$etcdctl --endpoints="$(client 0)" get greeting

kill -TERM "${pid[@]}"
for number in 0 1 2; do wait "${pid[$number]}"; done
trap - EXIT
echo "stopped; the data are in $directory"
