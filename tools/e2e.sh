#!/bin/sh
# Tries the chart in the cluster that kubectl knows: installs it, asks it, changes its configuration while it runs,
# restarts it, and removes it. IMAGE is an image that the cluster can pull, as REPOSITORY:TAG. Everything happens in a
# namespace that it makes for itself, and that goes at the end.
set -eu
cd "$(dirname "$0")/.."
: "${IMAGE:?say which image the cluster can pull: make e2e IMAGE=registry.example.org/gatepost:0.1.0}"
HELM=${HELM:-helm}
NAMESPACE=gatepost-e2e-$$
POD=gatepost-0

step() { printf '\ne2e: %s\n' "$*"; }
kube() { kubectl --namespace "$NAMESPACE" "$@"; }
inside() { kube exec "$POD" --container gatepost -- gatepost "$@"; }

queued() { # how many messages wait in both pods
    for pod in gatepost-0 gatepost-1; do
        kube exec "$pod" --container gatepost -- gatepost queue list --json
    done | grep -o '"id"' | wc -l
}

install() { # more options of helm
    "$HELM" upgrade --install gatepost helm/gatepost --namespace "$NAMESPACE" --wait --timeout 10m \
        --set "image.repository=${IMAGE%:*}" --set "image.tag=${IMAGE##*:}" \
        --set services.mx.type=ClusterIP --set persistence.size=1Gi --set reloadSeconds=2 \
        --set config.hostname=mx.example.org --set test.recipient=ben@example.org --set test.send=true \
        --set 'config.domains.example\.org.next_hop=lmtp:127.0.0.1:9' \
        --set 'config.domains.example\.org.recipients=any' "$@"
}

finish() {
    step "removing namespace $NAMESPACE"
    kubectl delete namespace "$NAMESPACE" --wait=false
}

kubectl create namespace "$NAMESPACE"
trap finish EXIT
kubectl label namespace "$NAMESPACE" pod-security.kubernetes.io/enforce=restricted

step "installing, under the restricted profile"
install
step "helm test"
tested=0
"$HELM" test gatepost --namespace "$NAMESPACE" || tested=$?
# Not by --logs of helm: Helm 3 cannot have those of a pod with several containers.
kube logs gatepost-selftest --all-containers
[ "$tested" = 0 ]
before=$(queued)
[ "$before" -gt 0 ]

step "a change that running pods take"
started=$(kube get pod "$POD" --output 'jsonpath={.status.startTime}')
install --set config.hostname=changed.example.org
for _ in $(seq 60); do
    if inside selftest --smtp 127.0.0.1:2525 --json | grep -q changed.example.org; then break; fi
    sleep 5
done
inside selftest --smtp 127.0.0.1:2525 --json | grep changed.example.org
[ "$(kube get pod "$POD" --output 'jsonpath={.status.startTime}')" = "$started" ]

step "a change that must be refused before anything happens"
if install --set-json 'config.pipeline=["no-such-plugin"]'; then
    echo "it was taken" >&2
    exit 1
fi

step "a rolling restart: the queue is the same afterwards"
install
kube rollout restart statefulset/gatepost
kube rollout status statefulset/gatepost --timeout 10m
[ "$(queued)" = "$before" ]
step "done"
