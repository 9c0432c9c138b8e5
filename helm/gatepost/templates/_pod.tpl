{{/* The pods of the gateway, and what the Job that checks its configuration shares with them. */}}

{{- define "gatepost.pullSecrets" -}}
{{- with uniq (concat .Values.global.imagePullSecrets .Values.image.pullSecrets) }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
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
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
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

{{/* Whether there is a directory of packages, on a claim or filled before the gateway starts. */}}
{{- define "gatepost.packages" -}}
{{- $copied := or .Values.plugins.existingClaim .Values.plugins.wheels.requirements -}}
{{- range .Values.plugins.images }}
{{- if not .volume }}{{ $copied = true }}{{ end }}
{{- end }}
{{- if $copied }}true{{ end }}
{{- end }}

{{/* Where packages are: that directory, then the images that are mounted themselves. */}}
{{- define "gatepost.pythonPath" -}}
{{- $paths := list -}}
{{- if include "gatepost.packages" . }}{{ $paths = list "/opt/gatepost-plugins" }}{{ end }}
{{- range .Values.plugins.images }}
{{- if .volume }}
{{- $paths = append $paths (printf "/opt/gatepost-images/%s/%s" .name (default "/plugins" .path | trimAll "/") | trimSuffix "/") -}}
{{- end }}
{{- end }}
{{- join ":" $paths }}
{{- end }}

{{- define "gatepost.env" -}}
{{- with include "gatepost.pythonPath" . }}
- name: PYTHONPATH
  value: {{ . | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Containers that fill the directory of plugins before the gateway starts. */}}
{{- define "gatepost.pluginContainers" -}}
{{- $root := . -}}
{{- range .Values.plugins.images }}
{{- if not .volume }}
- name: {{ printf "plugin-%s" .name | trunc 63 | trimSuffix "-" }}
  image: {{ .image | quote }}
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
{{- end }}
{{- if .Values.plugins.wheels.requirements }}
- name: plugin-wheels
  image: {{ include "gatepost.image" . | quote }}
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
{{- if or .Values.tls.clientCA.existingSecret .Values.tls.clientCA.existingConfigMap }}
- name: client-ca
  mountPath: /etc/gatepost/client-ca
  readOnly: true
{{- end }}
{{- range $name, $secret := .Values.secrets }}
- name: secret-{{ $name }}
  mountPath: /etc/gatepost/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- if .Values.evacuate.enabled }}
- name: handover
  mountPath: /etc/gatepost/handover
  readOnly: true
{{- end }}
{{- if .Values.plugins.inline }}
- name: policies
  mountPath: /etc/gatepost/policies
  readOnly: true
{{- end }}
{{- if include "gatepost.packages" . }}
- name: plugins
  mountPath: /opt/gatepost-plugins
  readOnly: true
{{- end }}
{{- range .Values.plugins.images }}
{{- if .volume }}
- name: plugin-{{ .name }}
  mountPath: /opt/gatepost-images/{{ .name }}
  readOnly: true
{{- end }}
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
    name: {{ $fullname | quote }}
- name: tmp
  emptyDir:
    sizeLimit: 512Mi
{{- with include "gatepost.tlsSecret" $root }}
- name: tls
  secret:
    secretName: {{ . | quote }}
    defaultMode: 0440
{{- end }}
{{- with $root.Values.tls.clientCA }}
{{- if .existingSecret }}
- name: client-ca
  secret:
    secretName: {{ .existingSecret | quote }}
    items: [{key: {{ .key | quote }}, path: ca.crt}]
    defaultMode: 0440
{{- else if .existingConfigMap }}
- name: client-ca
  configMap:
    name: {{ .existingConfigMap | quote }}
    items: [{key: {{ .key | quote }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- range $name, $secret := $root.Values.secrets }}
- name: secret-{{ $name }}
  secret:
    secretName: {{ $secret | quote }}
    defaultMode: 0440
{{- end }}
{{- if $root.Values.evacuate.enabled }}
- name: handover
  secret:
    secretName: {{ $root.Values.evacuate.secret | quote }}
    defaultMode: 0440
{{- end }}
{{- if $root.Values.plugins.inline }}
- name: policies
  configMap:
    name: {{ $fullname }}-policies
{{- end }}
{{- if include "gatepost.packages" $root }}
- name: plugins
  {{- if $root.Values.plugins.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ $root.Values.plugins.existingClaim | quote }}
    readOnly: true
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}
{{- range $root.Values.plugins.images }}
{{- if .volume }}
- name: plugin-{{ .name }}
  image:
    reference: {{ .image | quote }}
    {{- with .pullPolicy }}
    pullPolicy: {{ . }}
    {{- end }}
{{- end }}
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
  name: {{ $name | quote }}
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

{{/* The queue's volume, where it is no claim of the StatefulSet's own making. */}}
{{- define "gatepost.queueVolume" -}}
{{- $p := .Values.persistence -}}
{{- if include "gatepost.postgres" . }}
- name: queue
  emptyDir:
    sizeLimit: {{ toYaml .Values.stateless.sizeLimit }}
{{- else if not $p.enabled }}
- name: queue
  emptyDir: {}
{{- else if $p.existingClaim }}
- name: queue
  persistentVolumeClaim:
    claimName: {{ $p.existingClaim | quote }}
{{- end }}
{{- end }}

{{/* The pod of the StatefulSet, or of the Deployment. */}}
{{- define "gatepost.podTemplate" -}}
metadata:
  labels:
    {{- include "gatepost.selector" . | nindent 4 }}
    # Set to off by hand, the pod gets no new sessions and works on.
    gatepost/traffic: "on"
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: gatepost
    gatepost/config: {{ include "gatepost.fingerprint" . | quote }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "gatepost.serviceAccount" . | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  {{- include "gatepost.pullSecrets" . | nindent 2 }}
  {{- include "gatepost.placement" . | nindent 2 }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "gatepost.spread" . | nindent 2 }}
  {{- with .Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $before := include "gatepost.pluginContainers" . | trim }}
  {{- if or $before .Values.initContainers }}
  initContainers:
    {{- with $before }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .Values.initContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: gatepost
      image: {{ include "gatepost.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [run, --config, /etc/gatepost/config/gatepost.yaml]
      {{- with include "gatepost.env" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      {{- with .Values.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- range $name, $service := include "gatepost.services" . | fromYaml }}
        - name: {{ $name | quote }}
          containerPort: {{ $service.targetPort }}
          protocol: TCP
        {{- end }}
        - name: health
          containerPort: {{ include "gatepost.healthPort" . }}
          protocol: TCP
        {{- if .Values.evacuate.enabled }}
        - name: handover
          containerPort: {{ include "gatepost.handoverPort" . }}
          protocol: TCP
        {{- end }}
      # Never a dependency, and never the SMTP port: a store that is down must not end the queue before it.
      startupProbe:
        httpGet: {path: /startupz, port: health}
        {{- toYaml .Values.probes.startup | nindent 8 }}
      livenessProbe:
        httpGet: {path: /livez, port: health}
        {{- toYaml .Values.probes.live | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: health}
        {{- toYaml .Values.probes.ready | nindent 8 }}
      {{- with .Values.lifecycle }}
      lifecycle:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - name: queue
          mountPath: /var/lib/gatepost
        {{- include "gatepost.mounts" . | nindent 8 }}
    {{- with .Values.sidecars }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- with include "gatepost.queueVolume" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- include "gatepost.volumes" (list . "") | nindent 4 }}
{{- end }}
