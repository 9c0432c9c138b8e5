{{/* The configuration file, made once from `config` and what other values say. */}}

{{- define "gatepost.healthPort" -}}8080{{- end }}
{{- define "gatepost.adminPort" -}}9925{{- end }}
{{- define "gatepost.handoverPort" -}}9926{{- end }}

{{/* All addresses of a family. */}}
{{- define "gatepost.anyAddress" -}}
{{- eq . "IPv6" | ternary "[::]" "0.0.0.0" }}
{{- end }}

{{- define "gatepost.listeners" -}}
{{- $root := . -}}
{{- range $name, $service := include "gatepost.services" . | fromYaml }}
{{- $tls := include "gatepost.tlsOf" (list $root $service) }}
{{- range $family := $root.Values.ipFamilies }}
- address: {{ printf "%s:%v" (include "gatepost.anyAddress" $family) $service.targetPort | quote }}
  pipeline: {{ default "default" $service.pipeline | quote }}
  {{- if ne $tls "none" }}
  tls:
    certificate: /etc/gatepost/tls/tls.crt
    key: /etc/gatepost/tls/tls.key
    mode: {{ $tls }}
    {{- $certificates := include "gatepost.clientCertificatesOf" (list $root $service) }}
    {{- if ne $certificates "none" }}
    client_ca: /etc/gatepost/client-ca/ca.crt
    client_certificate: {{ $certificates }}
    {{- end }}
  {{- end }}
  {{- if $service.proxyProtocol }}
  proxy_protocol:
    trusted:
      {{- toYaml $service.trustedNetworks | nindent 6 }}
  {{- end }}
  {{- with $service.xclientNetworks }}
  xclient:
    trusted:
      {{- toYaml . | nindent 6 }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gatepost.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $_ := set $config "listeners" (include "gatepost.listeners" . | fromYamlArray) -}}
{{- $admin := dict "address" (printf "127.0.0.1:%s" (include "gatepost.adminPort" .)) "health" (printf "%s:%s" (include "gatepost.anyAddress" (first .Values.ipFamilies)) (include "gatepost.healthPort" .)) -}}
{{- if .Values.evacuate.enabled }}
{{- $_ := set $admin "token_file" (printf "/etc/gatepost/handover/%s" .Values.evacuate.key) -}}
{{- $_ := set $admin "handover" (printf "%s:%s" (include "gatepost.anyAddress" (first .Values.ipFamilies)) (include "gatepost.handoverPort" .)) -}}
{{- $peers := printf "http://%s-pods.%s.svc.%s:%s" (include "gatepost.fullname" .) .Release.Namespace .Values.evacuate.clusterDomain (include "gatepost.handoverPort" .) -}}
{{- $_ := set $config "evacuate" (dict "when" .Values.evacuate.when "peers" $peers "time" (printf "%vs" .Values.evacuate.seconds)) -}}
{{- end }}
{{- $_ := set $config "admin" $admin -}}
{{- $_ := set $config "spool" (merge (dict "path" "/var/lib/gatepost/spool") (default dict $config.spool)) -}}
{{- $_ := set $config "state" (merge (dict "path" "/var/lib/gatepost/state") (default dict $config.state)) -}}
{{- $drain := dict "drain" (printf "%vs" .Values.drain.sessionSeconds) "drain_delay" (printf "%vs" .Values.drain.delaySeconds) -}}
{{- $_ := set $config "timeouts" (merge $drain (default dict $config.timeouts)) -}}
{{- if eq .Values.reload "hot" }}
{{- $_ := set $config "reload" (dict "watch" (printf "%vs" .Values.reloadSeconds)) -}}
{{- end }}
{{- if .Values.plugins.inline }}
{{- $_ := set $config "policy_folder" "/etc/gatepost/policies" -}}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/*
What must restart the pods when it changes: all that is in files with `reload: rolling`, and with `reload: hot` what the
gateway takes at its start only.
*/}}
{{- define "gatepost.fingerprint" -}}
{{- $text := include "gatepost.config" . -}}
{{- if eq .Values.reload "rolling" }}
{{- $text = printf "%s\n%s" $text (toYaml .Values.plugins.inline) -}}
{{- else }}
{{- $config := fromYaml $text -}}
{{- $addresses := list -}}
{{- range $config.listeners }}{{ $addresses = append $addresses .address }}{{ end -}}
{{- $text = toYaml (set (pick $config "workers" "spool" "state" "admin" "log") "addresses" $addresses) -}}
{{- end }}
{{- $text | sha256sum | trunc 40 }}
{{- end }}
