"""Values of the chart that few people set, and that Kubernetes takes."""

from __future__ import annotations

from typing import Any

UNUSUAL: dict[str, Any] = {
    "image": {"repository": "registry.example:5000/team/sub-team/dapt_operator", "digest": "sha256:" + "a" * 64},
    "commonLabels": {"example.com/cost-centre": "4711", "empty": ""},
    "podLabels": {"a" * 63: "b" * 63, "A.b_c-d": "1.0_x"},
    "podAnnotations": {"example.com/note": "any text: at all\nin two lines"},
    "podDisruptionBudget": {"maxUnavailable": "50%"},
    "crds": {"install": False},
    "replicas": 3,
    "operator": {
        "extraEnv": [
            {"name": "A.b-c_D", "value": ""},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "token", "optional": True}}},
        ],
        "extraEnvFrom": [{"secretRef": {"name": "proxy"}}, {"prefix": "X_", "configMapRef": {"name": "a.b"}}],
        "extraVolumes": [
            {"name": "ca", "projected": {"sources": [{"configMap": {"name": "ca"}}], "defaultMode": 292}},
            {"name": "scratch", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "claim", "persistentVolumeClaim": {"claimName": "a", "readOnly": True}},
            {"name": "key", "secret": {"secretName": "a", "items": [{"key": "a", "path": "b/..c/a.pem"}]}},
        ],
        "extraVolumeMounts": [
            {"name": "ca", "mountPath": "/etc/ssl/certs", "readOnly": True, "subPath": "certs/..2026"},
            {"name": "ca", "mountPath": "/other", "subPathExpr": "$(NODE)"},
        ],
    },
    "resources": {
        "requests": {"cpu": 0.5, "memory": 268435456, "ephemeral-storage": "64Mi"},
        "limits": {"cpu": 2, "memory": "0.5Gi", "ephemeral-storage": "1G"},
    },
    "podSecurityContext": {
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/dapt.json"},
        "supplementalGroups": [1, 2],
        "seLinuxOptions": {"level": "s0:c123,c456"},
        "sysctls": [{"name": "net.ipv4.tcp_keepalive_time", "value": "60"}],
    },
    "containerSecurityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"]}, "procMount": "Default"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [
        {"operator": "Exists"},
        {"key": "example.com/gpu", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
    ],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["3"]}]},
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node.example"]}]},
                ]
            }
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {}}}
            ]
        },
    },
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "minDomains": 2,
         "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "dapt"}}, "matchLabelKeys": ["pod-template-hash"]},
    ],
    "priorityClassName": "system-cluster-critical",
    "dnsPolicy": "None",
    "dnsConfig": {
        "nameservers": ["10.0.0.10", "fd00::10"],
        "searches": ["svc.cluster.local", "example.com."],
        "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
    },
    "hostAliases": [{"ip": "fd00:1:2:3:4:5:6:7", "hostnames": ["registry.example", "r"]}],
    "networkPolicy": {
        "apiServer": {"cidrs": ["10.96.0.1/32", "0.0.0.0/0", "fd00::1/128", "::/0", "64:ff9b::/96"]},
        "metricsFrom": [
            {"namespaceSelector": {}, "podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}},
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        ],
        "egress": [{"ports": [{"port": 9000, "endPort": 9010}, {"port": "s3-api", "protocol": "TCP"}]}, {}],
        "operatorEgress": [{"to": [{"ipBlock": {"cidr": "10.0.0.9/32"}}], "ports": [{"port": 3128}]}],
        "trainerNamespaces": ["dapt-system"],
    },
}  # fmt: skip
"""They install on a real API server, which tests/cluster/test_chart.py tries."""
