{{/* The services that are enabled, with what they leave out; for fromYaml. */}}
{{- define "gatepost.services" -}}
{{- $defaults := dict "enabled" true "type" "ClusterIP" "port" 25 "pipeline" "default" -}}
{{- $found := dict -}}
{{- range $name, $service := .Values.services }}
{{- $whole := merge (dict) (default dict $service) -}}
{{- range $key, $value := $defaults }}
{{- if not (hasKey $whole $key) }}{{ $_ := set $whole $key $value }}{{ end }}
{{- end }}
{{- if and $service $whole.enabled }}{{ $_ := set $found $name $whole }}{{ end }}
{{- end }}
{{- toYaml $found }}
{{- end }}
