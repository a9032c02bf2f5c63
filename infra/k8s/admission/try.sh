#!/usr/bin/env bash
# Applies the admission policies to the cluster that kubectl speaks to, and tries manifests on it as dry runs on the server:
# production.yaml in the directory given must be admitted, every other file refused with each line of its file .refusals.
# `cargo xtask manifests --cluster` runs this.
set -euo pipefail
here=$(dirname "$0")
kubectl apply --filename="$here/../base/namespace.yaml"
kubectl apply --kustomize="$here"

status=0
for file in "$1"/*.refusals; do
  while read -r message; do
    verdict="NOT REFUSED"
    # A policy takes a while to have effect once it is applied.
    for _ in {1..60}; do
      if ! answer=$(kubectl apply --dry-run=server --filename="${file%.refusals}.yaml" 2>&1 </dev/null) && [[ $answer == *"$message"* ]]; then
        verdict=refused
        break
      fi
      sleep 1
    done
    echo "$verdict: $message"
    [[ $verdict == refused ]] || status=1
  done <"$file"
done
if kubectl apply --dry-run=server --filename="$1/production.yaml" >/dev/null; then
  echo "production: admitted"
else
  echo "production: NOT ADMITTED"
  status=1
fi
exit "$status"
