{{/* Parts that the pods of the gateway and the Job that checks its configuration share. */}}

{{- define "gatepost.pullSecrets" -}}
{{- with uniq (concat .Values.global.imagePullSecrets .Values.image.pullSecrets) }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where pods run; the same for all of them. */}}
{{- define "gatepost.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "gatepost.pythonPath" -}}
{{- if or .Values.plugins.images .Values.plugins.wheels.requirements }}true{{ end }}
{{- end }}

{{- define "gatepost.env" -}}
{{- if include "gatepost.pythonPath" . }}
- name: PYTHONPATH
  value: /opt/gatepost-plugins
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Containers that fill the directory of plugins before the gateway starts. */}}
{{- define "gatepost.pluginContainers" -}}
{{- $root := . -}}
{{- range .Values.plugins.images }}
- name: {{ printf "plugin-%s" .name | trunc 63 | trimSuffix "-" }}
  image: {{ .image }}
  {{- with .pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  command:
    {{- toYaml (default (list "cp" "-R" (printf "%s/." (default "/plugins" .path)) "/opt/gatepost-plugins/") .command) | nindent 4 }}
  {{- with $root.Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: plugins
      mountPath: /opt/gatepost-plugins
{{- end }}
{{- if .Values.plugins.wheels.requirements }}
- name: plugin-wheels
  image: {{ include "gatepost.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command:
    - /opt/gatepost/bin/python
    - -m
    - pip
    - install
    - --no-index
    - --no-deps
    - --no-compile
    - --no-cache-dir
    - --require-hashes
    - --find-links=/wheels
    - --target=/opt/gatepost-plugins
    - --upgrade
    - --requirement=/etc/gatepost/wheels/requirements.txt
  {{- with .Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: plugins
      mountPath: /opt/gatepost-plugins
    - name: wheels
      mountPath: /wheels
      readOnly: true
    - name: requirements
      mountPath: /etc/gatepost/wheels
      readOnly: true
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end }}

{{/* Mounts of the gateway but for its queue. Directories, never subPath: a subPath mount never changes. */}}
{{- define "gatepost.mounts" -}}
- name: config
  mountPath: /etc/gatepost/config
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- if include "gatepost.tlsSecret" . }}
- name: tls
  mountPath: /etc/gatepost/tls
  readOnly: true
{{- end }}
{{- range $name, $secret := .Values.secrets }}
- name: secret-{{ $name }}
  mountPath: /etc/gatepost/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- if .Values.plugins.inline }}
- name: policies
  mountPath: /etc/gatepost/policies
  readOnly: true
{{- end }}
{{- if include "gatepost.pythonPath" . }}
- name: plugins
  mountPath: /opt/gatepost-plugins
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The volumes for them; argument: a list of root and the suffix of the ConfigMaps' names. */}}
{{- define "gatepost.volumes" -}}
{{- $root := index . 0 -}}
{{- $fullname := printf "%s%s" (include "gatepost.fullname" $root) (index . 1) -}}
- name: config
  configMap:
    name: {{ $fullname }}
- name: tmp
  emptyDir:
    sizeLimit: 512Mi
{{- with include "gatepost.tlsSecret" $root }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- range $name, $secret := $root.Values.secrets }}
- name: secret-{{ $name }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
{{- end }}
{{- if $root.Values.plugins.inline }}
- name: policies
  configMap:
    name: {{ $fullname }}-policies
{{- end }}
{{- if include "gatepost.pythonPath" $root }}
- name: plugins
  emptyDir: {}
{{- end }}
{{- if $root.Values.plugins.wheels.requirements }}
- name: wheels
  {{- toYaml $root.Values.plugins.wheels.source | nindent 2 }}
- name: requirements
  configMap:
    name: {{ $fullname }}-wheels
{{- end }}
{{- with $root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* ConfigMaps with the gateway's files; argument: root, suffix of their names, component, and annotations. */}}
{{- define "gatepost.files" -}}
{{- $root := index . 0 -}}
{{- $fullname := printf "%s%s" (include "gatepost.fullname" $root) (index . 1) -}}
{{- $maps := dict $fullname (dict "gatepost.yaml" (printf "%s\n" (include "gatepost.config" $root))) -}}
{{- with $root.Values.plugins.inline }}
{{- $_ := set $maps (printf "%s-policies" $fullname) . -}}
{{- end }}
{{- with $root.Values.plugins.wheels.requirements }}
{{- $_ := set $maps (printf "%s-wheels" $fullname) (dict "requirements.txt" .) -}}
{{- end }}
{{- $component := index . 2 -}}
{{- $annotations := index . 3 -}}
{{- range $name, $data := $maps }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  labels:
    {{- include "gatepost.labels" (list $root $component) | nindent 4 }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
data:
  {{- toYaml $data | nindent 2 }}
{{- end }}
{{- end }}
