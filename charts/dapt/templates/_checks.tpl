{{/*
What Kubernetes refuses and a schema cannot say, since it is about several values. All problems at once.
*/}}
{{- define "dapt.checks" -}}
{{- $problems := list -}}
{{- $values := .Values -}}

{{- $name := include "dapt.fullname" . -}}
{{- if not (regexMatch "^[a-z]" $name) -}}
{{- $problems = append $problems (printf "release name: %q begins the names of Services, which begin with a letter; choose another name or set fullnameOverride" $name) -}}
{{- end -}}

{{- $own := list "helm.sh/chart" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" -}}
{{- range $block := list "commonLabels" "podLabels" -}}
{{- range $key := keys (get $values $block) | sortAlpha -}}
{{- if or (has $key $own) (and (eq $block "podLabels") (hasKey $values.commonLabels $key)) -}}
{{- $problems = append $problems (printf "%s: %q is set by the chart or by commonLabels already; remove it" $block $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- range $kind, $limit := $values.resources.limits -}}
{{- $request := get ($values.resources.requests | default dict) $kind -}}
{{- if and $request (gt (include "dapt.amount" $request | float64) (include "dapt.amount" $limit | float64)) -}}
{{- $problems = append $problems (printf "resources.requests.%s: %v is above resources.limits.%s, which is %v; raise the limit or lower the request" $kind $request $kind $limit) -}}
{{- end -}}
{{- end -}}

{{- $pod := $values.podSecurityContext | default dict -}}
{{- $container := $values.containerSecurityContext | default dict -}}
{{- /* The container's setting counts before the pod's, and `get` gives "" for what is not there. */ -}}
{{- $user := get (hasKey $container "runAsUser" | ternary $container $pod) "runAsUser" -}}
{{- $nonRoot := get (hasKey $container "runAsNonRoot" | ternary $container $pod) "runAsNonRoot" -}}
{{- if and (eq (toString $nonRoot) "true") (eq (toString $user) "0") -}}
{{- $problems = append $problems "podSecurityContext: runAsUser is 0 and runAsNonRoot is true, so the pod would not start; set another user" -}}
{{- end -}}
{{- if and (eq (toString (get $container "privileged")) "true") (eq (toString (get $container "allowPrivilegeEscalation")) "false") -}}
{{- $problems = append $problems "containerSecurityContext: privileged is true and allowPrivilegeEscalation is false, which Kubernetes refuses; set privileged to false" -}}
{{- end -}}

{{- if and (eq $values.dnsPolicy "None") (not $values.dnsConfig.nameservers) -}}
{{- $problems = append $problems "dnsPolicy: None needs dnsConfig.nameservers; list one at least" -}}
{{- end -}}

{{- $names := dict -}}
{{- range $index, $variable := $values.operator.extraEnv -}}
{{- if hasKey $names $variable.name -}}
{{- $problems = append $problems (printf "operator.extraEnv[%d]: %s is set twice; remove one" $index $variable.name) -}}
{{- end -}}
{{- if and $variable.value $variable.valueFrom -}}
{{- $problems = append $problems (printf "operator.extraEnv[%d]: %s has value and valueFrom; remove one" $index $variable.name) -}}
{{- end -}}
{{- $_ := set $names $variable.name true -}}
{{- end -}}

{{- $volumes := dict "tmp" true -}}
{{- range $index, $volume := $values.operator.extraVolumes -}}
{{- if hasKey $volumes $volume.name -}}
{{- $problems = append $problems (printf "operator.extraVolumes[%d]: a volume %q is there already; choose another name" $index $volume.name) -}}
{{- end -}}
{{- $_ := set $volumes $volume.name true -}}
{{- end -}}
{{- $paths := dict "/tmp" true -}}
{{- range $index, $mount := $values.operator.extraVolumeMounts -}}
{{- if not (hasKey $volumes $mount.name) -}}
{{- $problems = append $problems (printf "operator.extraVolumeMounts[%d]: there is no volume %q; add it to operator.extraVolumes" $index $mount.name) -}}
{{- end -}}
{{- if hasKey $paths $mount.mountPath -}}
{{- $problems = append $problems (printf "operator.extraVolumeMounts[%d]: something is mounted at %s already; choose another path" $index $mount.mountPath) -}}
{{- end -}}
{{- if and $mount.subPath $mount.subPathExpr -}}
{{- $problems = append $problems (printf "operator.extraVolumeMounts[%d]: it has subPath and subPathExpr; remove one" $index) -}}
{{- end -}}
{{- $_ := set $paths $mount.mountPath true -}}
{{- end -}}

{{- range $block := list "egress" "operatorEgress" -}}
{{- range $index, $rule := get $values.networkPolicy $block -}}
{{- range $rule.ports -}}
{{- if and .endPort (lt (int .endPort) (int .port)) -}}
{{- $problems = append $problems (printf "networkPolicy.%s[%d]: endPort %v is below port %v; exchange them" $block $index .endPort .port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $blocks := list -}}
{{- range $values.networkPolicy.apiServer.cidrs -}}{{- $blocks = append $blocks (list "apiServer.cidrs" .) -}}{{- end -}}
{{- range $values.networkPolicy.metricsFrom -}}
{{- with .ipBlock -}}{{- $blocks = append $blocks (list "metricsFrom" .cidr) -}}{{- end -}}
{{- end -}}
{{- range $block := list "egress" "operatorEgress" -}}
{{- range $rule := get $values.networkPolicy $block -}}
{{- range $rule.to -}}
{{- with .ipBlock -}}{{- $blocks = append $blocks (list $block .cidr) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $blocks -}}
{{- if eq (include "dapt.hasHostBits" (last .)) "true" -}}
{{- $problems = append $problems (printf "networkPolicy.%s: %s has bits set beyond its prefix; write the first address of the block" (first .) (last .)) -}}
{{- end -}}
{{- end -}}

{{- if $problems -}}
{{- fail (printf "these values do not fit:\n- %s" (join "\n- " $problems)) -}}
{{- end -}}
{{- end -}}

{{/* A quantity in its base unit. */}}
{{- define "dapt.amount" -}}
{{- $units := dict "" 1.0 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 -}}
{{- $text := toString . -}}
{{- if kindIs "float64" . -}}
{{- . -}}
{{- else -}}
{{- $unit := regexFind "[A-Za-z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) -}}
{{- end -}}
{{- end -}}

{{/* Whether an IPv4 block such as 10.0.0.1/8 has bits beyond its prefix. IPv6 is left to the API server. */}}
{{- define "dapt.hasHostBits" -}}
{{- $parts := splitList "/" . -}}
{{- if contains "." (first $parts) -}}
{{- $address := 0 -}}
{{- range splitList "." (first $parts) -}}{{- $address = add (mul $address 256) (int64 .) -}}{{- end -}}
{{- $size := 1 -}}
{{- range until (int (sub 32 (int (last $parts)))) -}}{{- $size = mul $size 2 -}}{{- end -}}
{{- ne (mod $address $size) 0 -}}
{{- end -}}
{{- end -}}
