{{/*
A container that asks the services with this kind of TLS, or probes and metrics (`http`); argument: a list of root and
kind. Services that want a PROXY header cannot be asked from a pod, and those with implicit TLS are not. Those that require a
certificate of clients are asked without TLS.
*/}}
{{- define "gatepost.selftest" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- $fullname := include "gatepost.fullname" $root -}}
{{- $args := list -}}
{{- if eq $kind "http" }}
{{- $args = list "--http" (printf "http://%s-pods:%s" $fullname (include "gatepost.healthPort" $root)) -}}
{{- else }}
{{- range $name, $service := include "gatepost.services" $root | fromYaml }}
{{- $tls := include "gatepost.tlsOf" (list $root $service) -}}
{{- if and (eq $tls "starttls") (eq (include "gatepost.clientCertificatesOf" (list $root $service)) "require") }}{{ $tls = "none" }}{{ end }}
{{- if and (not $service.proxyProtocol) (eq $tls $kind) }}
{{- $args = concat $args (list "--smtp" (printf "%s-%s:%v" $fullname $name $service.port)) -}}
{{- end }}
{{- end }}
{{- if $args }}
{{- if eq $kind "starttls" }}{{ $args = append $args "--starttls" }}{{ end }}
{{- with $root.Values.test.recipient }}{{ $args = concat $args (list "--to" .) }}{{ end }}
{{- if $root.Values.test.send }}{{ $args = append $args "--send" }}{{ end }}
{{- end }}
{{- end }}
{{- if $args }}
- name: {{ $kind }}
  image: {{ include "gatepost.image" $root | quote }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  args:
    {{- toYaml (prepend $args "selftest") | nindent 4 }}
  {{- with $root.Values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
