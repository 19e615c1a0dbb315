{{- define "dapt.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "dapt.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "dapt.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "dapt.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Names of cluster-scoped objects: releases of one name may exist in several namespaces. */}}
{{- define "dapt.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "dapt.fullname" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "dapt.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dapt.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dapt.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "dapt.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "dapt.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "dapt.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false: name an account of the release's namespace" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "dapt.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Pods of any stage of any adaptation. */}}
{{- define "dapt.trainerPods" -}}
matchLabels:
  app.kubernetes.io/managed-by: dapt
matchExpressions:
  - {key: dapt.dev/run, operator: Exists}
{{- end -}}

{{/* Prometheus refuses a timeout above the interval. */}}
{{- define "dapt.scrapeTimeout" -}}
{{- $interval := .Values.metrics.interval -}}
{{- if and (hasSuffix "s" $interval) (lt (int (trimSuffix "s" $interval)) 10) }}{{ $interval }}{{ else }}10s{{ end }}
{{- end -}}

{{/* Rights in each namespace that the operator manages. docs/operating.md says what each is for. */}}
{{- define "dapt.rules" -}}
- apiGroups: [dapt.dev]
  resources: [domainadaptations]
  verbs: [list, watch, get]
- apiGroups: [dapt.dev]
  resources: [domainadaptations/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, get, create, delete]
{{- if .Values.features.jobSet }}
- apiGroups: [jobset.x-k8s.io]
  resources: [jobsets]
  verbs: [list, watch, get, create, delete]
{{- end }}
{{- if .Values.features.kueue }}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, delete]
- apiGroups: [""]
  resources: [services, persistentvolumeclaims]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end -}}

{{/* Profiles are cluster-scoped: every install reads them. */}}
{{- define "dapt.profileRules" -}}
- apiGroups: [dapt.dev]
  resources: [adaptationprofiles]
  verbs: [list, watch]
{{- end -}}

{{- /* DNS; the second port is where some platforms' DNS pods listen, and a policy sees the pods' port. */ -}}
{{- define "dapt.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
    - {port: 5353, protocol: UDP}
    - {port: 5353, protocol: TCP}
{{- end }}
