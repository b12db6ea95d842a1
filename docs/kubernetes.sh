#!/usr/bin/env bash
# A Ray cluster on Kubernetes: IMAGE=registry/faces:1 WORKERS=4 GPUS=1 docs/kubernetes.sh repro
# IMAGE has the packages of requirements.txt and requirements-cluster.txt, and git. The project, with
# its DVC cache, is in the volume that the claim "faces" names; only the head mounts it.
set -euo pipefail
: "${IMAGE:?the image with the packages}" "${WORKERS:=2}" "${CPUS:=4}" "${GPUS:=0}"

kubectl get secret faces-token > /dev/null 2>&1 ||
    kubectl create secret generic faces-token --from-literal=token="$(openssl rand -hex 32)"

pod() {  # the command of a pod, indented as part of a manifest; $1: how Ray starts
    cat <<EOF
      containers:
        - name: ray
          image: $IMAGE
          command: [/bin/sh, -c, "exec ray start $1 --num-cpus=$CPUS --block"]
          env:
            - {name: RAY_AUTH_MODE, value: token}
            - {name: OMP_NUM_THREADS, value: "$CPUS"}
            - {name: RAY_AUTH_TOKEN, valueFrom: {secretKeyRef: {name: faces-token, key: token}}}
          resources: {limits: {cpu: "$CPUS", nvidia.com/gpu: "$GPUS"}}
EOF
}

deployment() {  # $1: name, $2: replicas, $3: how Ray starts
    cat <<EOF
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1}
spec:
  replicas: $2
  selector: {matchLabels: {app: $1}}
  template:
    metadata: {labels: {app: $1}}
    spec:
$(pod "$3")
EOF
}

kubectl apply --filename=- <<EOF
apiVersion: v1
kind: Service
metadata: {name: faces-head}
spec: {clusterIP: None, selector: {app: faces-head}, ports: [{port: 6379}]}
---
$(deployment faces-head 1 "--head --port=6379 --include-dashboard=false")
          volumeMounts: [{name: project, mountPath: /project}]
      volumes: [{name: project, persistentVolumeClaim: {claimName: faces}}]
---
$(deployment faces-workers "$WORKERS" "--address=faces-head:6379")
EOF

kubectl rollout status deployment/faces-head
kubectl rollout status deployment/faces-workers
# shellcheck disable=SC2016  # the head's shell expands it
kubectl exec deployment/faces-head -- /bin/sh -c \
    'cd /project && RAY_ADDRESS=$(hostname -i):6379 exec python -m commands.cluster "$@"' sh "$@"
