{{/* Names, labels and the image. */}}

{{- define "gatepost.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 46 | trimAll "-" }}
{{- end }}

{{/* 46 characters at most: pods, their revision label and other objects add to it. */}}
{{- define "gatepost.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 46 | trimAll "-" }}
{{- else if contains (include "gatepost.name" .) .Release.Name }}
{{- .Release.Name | trunc 46 | trimAll "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gatepost.name" .) | trunc 46 | trimAll "-" }}
{{- end }}
{{- end }}

{{- define "gatepost.selector" -}}
app.kubernetes.io/name: {{ include "gatepost.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: gateway
{{- end }}

{{/*
Labels of everything but the pods of the gateway; argument: a list of root and component, and of more labels, which go before
those of all.
*/}}
{{- define "gatepost.labels" -}}
{{- $root := index . 0 -}}
{{- $more := dict -}}
{{- range slice . 2 }}{{ $more = merge $more (default dict .) }}{{ end -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "gatepost.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with merge $more $root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gatepost.image" -}}
{{- $registry := default .Values.image.registry .Values.global.imageRegistry -}}
{{- with $registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ default .Chart.AppVersion .Values.image.tag }}{{ end }}
{{- end }}

{{- define "gatepost.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gatepost.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The Secret with the certificate; empty where there is none. */}}
{{- define "gatepost.tlsSecret" -}}
{{- if .Values.tls.existingSecret }}{{ .Values.tls.existingSecret }}
{{- else if .Values.tls.certificate.enabled }}{{ include "gatepost.fullname" . }}-tls
{{- end }}
{{- end }}

{{/* What kind of TLS a service has: starttls, implicit or none; argument: a list of root and service. */}}
{{- define "gatepost.tlsOf" -}}
{{- $given := default "" (index . 1).tls -}}
{{- if $given }}{{ $given }}{{ else if include "gatepost.tlsSecret" (index . 0) }}starttls{{ else }}none{{ end }}
{{- end }}

{{/* Whether a service's clients are asked for certificates: ask, require or none; argument: a list of root and service. */}}
{{- define "gatepost.clientCertificatesOf" -}}
{{- $ca := (index . 0).Values.tls.clientCA -}}
{{- $given := default "" (index . 1).clientCertificates -}}
{{- if $given }}{{ $given }}
{{- else if and (or $ca.existingSecret $ca.existingConfigMap) (ne (include "gatepost.tlsOf" .) "none") }}ask
{{- else }}none
{{- end }}
{{- end }}

{{/* externalTrafficPolicy of a service; empty for a ClusterIP one. */}}
{{- define "gatepost.trafficPolicy" -}}
{{- if ne .type "ClusterIP" }}{{ default "Local" .externalTrafficPolicy }}{{ end }}
{{- end }}

{{/* The URL of the database that holds the queue of all pods; empty where each pod has its own. */}}
{{- define "gatepost.postgres" -}}
{{- include "gatepost.url" (default dict .Values.config.spool).postgres }}
{{- end }}

{{/* The URL in an option that has a short form, the URL by itself. */}}
{{- define "gatepost.url" -}}
{{- if kindIs "map" . }}{{ default "" .url }}{{ else }}{{ default "" . }}{{ end }}
{{- end }}

{{/* What runs the pods. */}}
{{- define "gatepost.workload" -}}
{{- if include "gatepost.postgres" . }}Deployment{{ else }}StatefulSet{{ end }}
{{- end }}

{{/* A pattern for the names of its pods, and of no Job's; ReplicaSets name theirs without vowels. */}}
{{- define "gatepost.podPattern" -}}
{{- $random := "[b-df-hj-np-tv-xz2-9]" -}}
{{- include "gatepost.fullname" . }}-{{ if include "gatepost.postgres" . }}{{ $random }}+-{{ $random }}{5}{{ else }}[0-9]+{{ end }}
{{- end }}

{{/* "true" when an autoscaler decides on the number of pods. */}}
{{- define "gatepost.scaled" -}}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}true{{ end }}
{{- end }}

{{/* The least number of pods. */}}
{{- define "gatepost.replicas" -}}
{{- if .Values.autoscaling.enabled }}{{ .Values.autoscaling.minReplicas }}
{{- else if .Values.keda.enabled }}{{ .Values.keda.minReplicas }}
{{- else }}{{ .Values.replicas }}
{{- end }}
{{- end }}
