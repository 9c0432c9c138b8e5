{{/* Where pods go in relation to each other. */}}
{{- define "gatepost.spread" -}}
{{- $root := . -}}
{{- $spread := .Values.topologySpread -}}
{{- if or $spread.zone $spread.node .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range $key, $when := dict "topology.kubernetes.io/zone" $spread.zone "kubernetes.io/hostname" $spread.node }}
  {{- if $when }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: {{ $when }}
    labelSelector:
      matchLabels:
        {{- include "gatepost.selector" $root | nindent 8 }}
  {{- end }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
