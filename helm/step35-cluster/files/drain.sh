#!/usr/bin/env bash
# A worker pod's preStop: Ray moves the node's replicas elsewhere and lets its requests end; then the pod may stop.
# $1: seconds that are left. $2: port of Serve's proxy, which closes when nothing runs here any more.
set -u
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod ends" \
  --deadline-remaining-seconds "$1" || exit 0
end=$((SECONDS + $1))
while [ "$SECONDS" -lt "$end" ]; do
  wget --tries 1 -T 2 -q -O /dev/null "http://127.0.0.1:$2/-/healthz"
  [ $? -eq 4 ] && exit 0 # nobody listens; a proxy that drains answers 503, which is 8
  sleep 2
done
