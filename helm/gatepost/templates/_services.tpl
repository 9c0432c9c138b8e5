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

{{/* TCP ports of the stores that pods share; for fromYamlArray. */}}
{{- define "gatepost.storePorts" -}}
{{- $found := list -}}
{{- $redis := include "gatepost.url" (default dict .Values.config.state).redis -}}
{{- range $url, $port := dict (include "gatepost.postgres" .) "5432" $redis "6379" }}
{{- if $url }}
{{- range splitList "," (regexReplaceAll "^[a-z]+://([^@/]*@)?([^/]*).*$" $url "${2}") }}
{{- $found = append $found (default $port (regexFind ":[0-9]+$" . | trimPrefix ":") | int) -}}
{{- end }}
{{- end }}
{{- end }}
{{- toYaml (uniq $found | sortAlpha) }}
{{- end }}
