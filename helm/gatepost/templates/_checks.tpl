{{/* Values that contradict each other end the rendering, with a message that names both. */}}

{{- define "gatepost.checks" -}}
{{- $v := .Values -}}
{{- include "gatepost.checkNames" . -}}
{{- include "gatepost.checkServices" . -}}
{{- include "gatepost.checkConfig" . -}}
{{- include "gatepost.checkStores" . -}}
{{- include "gatepost.checkTls" . -}}
{{- include "gatepost.checkQueue" . -}}
{{- include "gatepost.checkScaling" . -}}
{{- include "gatepost.checkEvacuation" . -}}
{{- include "gatepost.checkPlugins" . -}}
{{- include "gatepost.checkLifecycle" . -}}
{{- if eq $v.image.tag "latest" }}
{{- fail "image.tag is latest, which says nothing about what runs; give a version, or image.digest" }}
{{- end }}
{{- if and $v.image.registry (regexMatch "^(localhost|[^/]*[.:][^/]*)/" $v.image.repository) }}
{{- fail (printf "image.registry is %s, and image.repository is %s, which begins with a registry, too; set image.registry to \"\" or leave it out of image.repository" $v.image.registry $v.image.repository) }}
{{- end }}
{{- if and $v.monitoring.podMonitor.enabled $v.monitoring.serviceMonitor.enabled }}
{{- fail "monitoring.podMonitor.enabled and monitoring.serviceMonitor.enabled are both true, and every pod would be counted twice; choose one" }}
{{- end }}
{{- if and (eq $v.dnsPolicy "None") (not $v.dnsConfig.nameservers) }}
{{- fail "dnsPolicy is None and dnsConfig has no nameservers; pods would find no name" }}
{{- end }}
{{- if and $v.test.send (not $v.test.recipient) }}
{{- fail "test.send is true and test.recipient is empty; say who gets the message of helm test" }}
{{- end }}
{{- end }}

{{- define "gatepost.checkNames" -}}
{{- $name := include "gatepost.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "the names of all objects would begin with %s, and a Service's name begins with a letter and has no dots; set fullnameOverride, or name the release otherwise" $name) }}
{{- end }}
{{- $v := .Values -}}
{{- $own := list "helm.sh/chart" "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "gatepost/traffic" "gatepost/config" "kubectl.kubernetes.io/default-container" -}}
{{- $given := dict "labels" $v.labels "podLabels" $v.podLabels "podAnnotations" $v.podAnnotations "monitoring.labels" $v.monitoring.labels "monitoring.dashboard.labels" $v.monitoring.dashboard.labels -}}
{{- range $name, $service := include "gatepost.services" . | fromYaml }}
{{- $_ := set $given (printf "services.%s.labels" $name) (default dict $service.labels) -}}
{{- end }}
{{- range $at, $labels := $given }}
{{- range $key := keys $labels | sortAlpha }}
{{- if has $key $own }}
{{- fail (printf "%s has %s, which the chart sets itself; leave it out" $at $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- if hasKey $v.monitoring.rules.labels "severity" }}
{{- fail "monitoring.rules.labels has severity, which every alert has; leave it out" }}
{{- end }}
{{- end }}

{{- define "gatepost.checkPlugins" -}}
{{- $p := .Values.plugins -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- $names := list -}}
{{- if $p.wheels.requirements }}{{ $names = list "wheels" }}{{ end -}}
{{- range $p.images }}
{{- if has .name $names }}
{{- fail (printf "plugins.images has %s, and another image, or plugins.wheels, has that name; each needs one of its own" .name) }}
{{- end }}
{{- $names = append $names .name -}}
{{- if and .volume .command }}
{{- fail (printf "plugins.images has %s with volume and with command; an image that is mounted itself has nothing copied from it: leave one of them out" .name) }}
{{- end }}
{{- if and .volume (semverCompare "<1.33.0-0" $version) }}
{{- fail (printf "plugins.images has %s with volume true, and Kubernetes is %s, which has image volumes for the restricted profile from 1.33 on; leave volume out and it is copied (with helm template, --kube-version says which Kubernetes it is for)" .name $version) }}
{{- end }}
{{- end }}
{{- if and $p.wheels.requirements (not $p.wheels.source) }}
{{- fail "plugins.wheels.requirements is given and plugins.wheels.source is not; say which volume has the wheels" }}
{{- end }}
{{- if and $p.wheels.source (not $p.wheels.requirements) }}
{{- fail "plugins.wheels.source is given and plugins.wheels.requirements is not; say what to install, with hashes" }}
{{- end }}
{{- if and $p.existingClaim (or $p.images $p.wheels.requirements) }}
{{- fail (printf "plugins.existingClaim is %s, and plugins.images or plugins.wheels is given; there is one directory of packages: have all of them on the claim, or none" $p.existingClaim) }}
{{- end }}
{{- if and $p.existingClaim (eq $p.existingClaim .Values.persistence.existingClaim) }}
{{- fail (printf "plugins.existingClaim and persistence.existingClaim are both %s; packages and the queue need a claim each" $p.existingClaim) }}
{{- end }}
{{- end }}

{{- define "gatepost.checkLifecycle" -}}
{{- with dig "preStop" "sleep" "seconds" 0 .Values.lifecycle | int }}
{{- $rest := add (int $.Values.drain.delaySeconds) (int $.Values.drain.sessionSeconds) 35 (eq $.Values.evacuate.when "drain" | ternary (add (int $.Values.evacuate.seconds) 20) 0) -}}
{{- if lt (int $.Values.terminationGracePeriodSeconds) (int (add . $rest)) }}
{{- fail (printf "terminationGracePeriodSeconds is %v, and lifecycle.preStop.sleep.seconds %v and the %v s that draining may take after it are %v; the pod would be killed in the middle of it" $.Values.terminationGracePeriodSeconds . $rest (add . $rest)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gatepost.checkServices" -}}
{{- $root := . -}}
{{- $ports := dict (include "gatepost.healthPort" .) "probes and metrics" (include "gatepost.adminPort" .) "the admin API" (include "gatepost.handoverPort" .) "mail of other pods" -}}
{{- $nodes := dict -}}
{{- $any := false -}}
{{- range $name, $service := include "gatepost.services" . | fromYaml }}
{{- $any = true -}}
{{- $at := printf "services.%s" $name -}}
{{- if or (has $name (list "health" "handover" "pods")) (contains "--" $name) }}
{{- fail (printf "%s is no name for a service: health, handover and pods are others, and Kubernetes has no ports with -- in their names" $at) }}
{{- end }}
{{- $port := printf "%v" $service.targetPort -}}
{{- with get $ports $port }}
{{- fail (printf "%s.targetPort is %s, and so is the port of %s; every listener needs one of its own" $at $port .) }}
{{- end }}
{{- $_ := set $ports $port $at -}}
{{- if and $service.proxyProtocol (not $service.trustedNetworks) }}
{{- fail (printf "%s.proxyProtocol is true and %s.trustedNetworks is empty; say which networks the proxies have, since anybody else could claim to be anybody" $at $at) }}
{{- end }}
{{- with $service.nodePort }}
{{- $node := printf "nodePort %v" . -}}
{{- with get $nodes $node }}
{{- fail (printf "%s and %s both have %s; a node has it once" . $at $node) }}
{{- end }}
{{- $_ := set $nodes $node $at -}}
{{- end }}
{{- if and $service.trustedNetworks (not $service.proxyProtocol) }}
{{- fail (printf "%s.trustedNetworks is given and %s.proxyProtocol is false; no header would be read from them" $at $at) }}
{{- end }}
{{- if eq $service.type "ClusterIP" }}
{{- if $service.externalTrafficPolicy }}
{{- fail (printf "%s.externalTrafficPolicy is %s and %s.type is ClusterIP, which has none" $at $service.externalTrafficPolicy $at) }}
{{- end }}
{{- if $service.nodePort }}
{{- fail (printf "%s.nodePort is %v and %s.type is ClusterIP, which has none" $at $service.nodePort $at) }}
{{- end }}
{{- end }}
{{- if ne $service.type "LoadBalancer" }}
{{- range $key := list "loadBalancerClass" "loadBalancerSourceRanges" }}
{{- if index $service $key }}
{{- fail (printf "%s.%s is given and %s.type is %s; only a LoadBalancer has it" $at $key $at $service.type) }}
{{- end }}
{{- end }}
{{- end }}
{{- $families := $root.Values.ipFamilies -}}
{{- range $service.ipFamilies }}
{{- if not (has . $families) }}
{{- fail (printf "%s.ipFamilies has %s, and ipFamilies, what pods listen on, is %s" $at . (join ", " $families)) }}
{{- end }}
{{- end }}
{{- if and (has $service.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack")) (lt (len $families) 2) }}
{{- fail (printf "%s.ipFamilyPolicy is %s, and ipFamilies, what pods listen on, is %s alone" $at $service.ipFamilyPolicy (first $families)) }}
{{- end }}
{{- if and (eq (default "" $service.ipFamilyPolicy) "SingleStack") (gt (len (default list $service.ipFamilies)) 1) }}
{{- fail (printf "%s.ipFamilyPolicy is SingleStack, and %s.ipFamilies has two" $at $at) }}
{{- end }}
{{- if ne (include "gatepost.tlsOf" (list $root $service)) "none" }}
{{- if not (include "gatepost.tlsSecret" $root) }}
{{- fail (printf "%s.tls is %s, while tls.existingSecret is empty and tls.certificate.enabled is false; there is no certificate" $at $service.tls) }}
{{- end }}
{{- end }}
{{- $certificates := include "gatepost.clientCertificatesOf" (list $root $service) -}}
{{- if ne $certificates "none" }}
{{- if eq (include "gatepost.tlsOf" (list $root $service)) "none" }}
{{- fail (printf "%s.clientCertificates is %s, and it has no TLS to show one in" $at $certificates) }}
{{- end }}
{{- if not (or $root.Values.tls.clientCA.existingSecret $root.Values.tls.clientCA.existingConfigMap) }}
{{- fail (printf "%s.clientCertificates is %s, while tls.clientCA.existingSecret and tls.clientCA.existingConfigMap are empty; say by which CAs" $at $certificates) }}
{{- end }}
{{- end }}
{{- $pipeline := default "default" $service.pipeline -}}
{{- if and (ne $pipeline "default") (not (hasKey (default dict $root.Values.config.pipelines) $pipeline)) }}
{{- fail (printf "%s.pipeline is %s, and config.pipelines has no such pipeline" $at $pipeline) }}
{{- end }}
{{- if and (eq (include "gatepost.trafficPolicy" $service) "Cluster") (not $service.proxyProtocol) $root.Values.config.relay_from }}
{{- fail (printf "config.relay_from lets networks send anywhere, while %s.externalTrafficPolicy is Cluster and %s.proxyProtocol is false: strangers may come in by a node's address, and relay" $at $at) }}
{{- end }}
{{- end }}
{{- if not $any }}
{{- fail "no entry of services is enabled; the gateway needs one listener at least" }}
{{- end }}
{{- end }}

{{- define "gatepost.checkConfig" -}}
{{- $config := .Values.config -}}
{{- if hasKey $config "listeners" }}
{{- fail "config.listeners is given, and listeners are made from services; describe them there" }}
{{- end }}
{{- if hasKey $config "admin" }}
{{- fail "config.admin is given, and the chart binds probes, metrics and the API itself; leave it out" }}
{{- end }}
{{- if hasKey $config "evacuate" }}
{{- fail "config.evacuate is given, and it is made from evacuate; set that" }}
{{- end }}
{{- range $section := list "spool" "state" }}
{{- if hasKey (default dict (get $config $section)) "path" }}
{{- fail (printf "config.%s.path is given, and it is on the volume that persistence describes; leave it out" $section) }}
{{- end }}
{{- end }}
{{- if hasKey (default dict $config.timeouts) "drain" }}
{{- fail "config.timeouts.drain is given, and it is made from drain.sessionSeconds; set that" }}
{{- end }}
{{- if hasKey (default dict $config.timeouts) "drain_delay" }}
{{- fail "config.timeouts.drain_delay is given, and it is made from drain.delaySeconds; set that" }}
{{- end }}
{{- if hasKey $config "reload" }}
{{- fail "config.reload is given, and it is made from reload and reloadSeconds; set those" }}
{{- end }}
{{- if and $config.policy_folder .Values.plugins.inline }}
{{- fail "config.policy_folder and plugins.inline are both given; there is one policy folder: mount the files there, or give them inline" }}
{{- end }}
{{- end }}

{{- define "gatepost.checkStores" -}}
{{- $root := . -}}
{{- $config := .Values.config -}}
{{- $stores := dict "config.spool.postgres" (default dict $config.spool).postgres "config.state.redis" (default dict $config.state).redis -}}
{{- range $at, $store := $stores }}
{{- if regexMatch "^[a-z]+://[^@/]*:[^@/]*@" (include "gatepost.url" $store) }}
{{- fail (printf "%s has a password in its URL, which everybody could read in a ConfigMap; put it into a Secret, name that in secrets, and its file in %s.password_file" $at $at) }}
{{- end }}
{{- if kindIs "map" $store }}
{{- $file := default "" $store.password_file -}}
{{- $name := regexFind "^/etc/gatepost/secrets/[^/]+/" $file | trimPrefix "/etc/gatepost/secrets/" | trimSuffix "/" -}}
{{- if and $name (not (hasKey $root.Values.secrets $name)) }}
{{- fail (printf "%s.password_file is %s, and secrets has no %s; say there which Secret is mounted" $at $file $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- $s := .Values.stateless -}}
{{- if and (has (toString $s.maxUnavailable) (list "0" "0%")) (has (toString $s.maxSurge) (list "0" "0%")) }}
{{- fail (printf "stateless.maxUnavailable is %v and stateless.maxSurge is %v; no pod could ever be replaced" $s.maxUnavailable $s.maxSurge) }}
{{- end }}
{{- end }}

{{- define "gatepost.checkTls" -}}
{{- $tls := .Values.tls -}}
{{- if and $tls.clientCA.existingSecret $tls.clientCA.existingConfigMap }}
{{- fail (printf "tls.clientCA.existingSecret is %s and tls.clientCA.existingConfigMap is %s; take the CAs from one of them" $tls.clientCA.existingSecret $tls.clientCA.existingConfigMap) }}
{{- end }}
{{- if and (or $tls.clientCA.existingSecret $tls.clientCA.existingConfigMap) (not (include "gatepost.tlsSecret" .)) }}
{{- fail "tls.clientCA is given, while tls.existingSecret is empty and tls.certificate.enabled is false; without a certificate there is no TLS in which clients could show theirs" }}
{{- end }}
{{- if and $tls.existingSecret $tls.certificate.enabled }}
{{- fail (printf "tls.existingSecret is %s and tls.certificate.enabled is true; take the certificate from one of them" $tls.existingSecret) }}
{{- end }}
{{- if and $tls.certificate.enabled (not $tls.certificate.issuer.name) }}
{{- fail "tls.certificate.enabled is true and tls.certificate.issuer.name is empty; say who issues it" }}
{{- end }}
{{- if and $tls.certificate.enabled (not $tls.certificate.dnsNames) }}
{{- fail "tls.certificate.enabled is true and tls.certificate.dnsNames is empty; name the hosts that MX records lead to" }}
{{- end }}
{{- with $tls.certificate.privateKey }}
{{- $sizes := list 256 384 521 -}}
{{- if and $tls.certificate.enabled (eq .algorithm "ECDSA" | ternary (not (has (int .size) $sizes)) (lt (int .size) 2048)) }}
{{- fail (printf "tls.certificate.privateKey.algorithm is %s and tls.certificate.privateKey.size is %v; ECDSA keys have 256, 384 or 521 bits, and RSA keys 2048 at least" .algorithm .size) }}
{{- end }}
{{- end }}
{{- if and .Values.checkBeforeInstall .Values.tls.certificate.enabled }}
{{- fail "checkBeforeInstall is true and tls.certificate.enabled is true; the certificate comes with the installation, and a check before it would wait for its Secret: use tls.existingSecret, or leave checkBeforeInstall off" }}
{{- end }}
{{- end }}

{{- define "gatepost.checkQueue" -}}
{{- $p := .Values.persistence -}}
{{- $several := or (include "gatepost.scaled" .) (gt (int .Values.replicas) 1) -}}
{{- $postgres := include "gatepost.postgres" . -}}
{{- if and $postgres (eq (toString $p.enabled) "true") }}
{{- fail "config.spool.postgres is given and persistence.enabled is true; the queue is in the database, and pods have no claims: leave persistence.enabled at auto" }}
{{- end }}
{{- if and $postgres $p.existingClaim }}
{{- fail (printf "config.spool.postgres is given and persistence.existingClaim is %s; the queue is in the database, and it would not be used" $p.existingClaim) }}
{{- end }}
{{- if and (not $postgres) (not $p.enabled) (not $p.acceptLoss) }}
{{- fail "persistence.enabled is false and persistence.acceptLoss is false; without a claim accepted mail goes with the pod: set acceptLoss if that is meant" }}
{{- end }}
{{- if and (not $p.enabled) $p.existingClaim }}
{{- fail (printf "persistence.existingClaim is %s and persistence.enabled is false; it would not be used" $p.existingClaim) }}
{{- end }}
{{- if and $p.existingClaim $several }}
{{- fail (printf "persistence.existingClaim is %s and there may be more than one pod (replicas is %v, or an autoscaler is on); a queue belongs to one pod" $p.existingClaim .Values.replicas) }}
{{- end }}
{{- range $when, $what := $p.retention }}
{{- if and (eq $what "Delete") (not $p.acceptLoss) }}
{{- fail (printf "persistence.retention.%s is Delete and persistence.acceptLoss is false; queued mail would go with the claim" $when) }}
{{- end }}
{{- end }}
{{- $needed := add (int .Values.drain.delaySeconds) (int .Values.drain.sessionSeconds) 35 -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $needed) }}
{{- fail (printf "terminationGracePeriodSeconds is %v, and drain.delaySeconds %v + drain.sessionSeconds %v + 35 s for attempts in flight and the spool are %v; the pod would be killed in the middle of it" .Values.terminationGracePeriodSeconds .Values.drain.delaySeconds .Values.drain.sessionSeconds $needed) }}
{{- end }}
{{- end }}

{{- define "gatepost.checkEvacuation" -}}
{{- $e := .Values.evacuate -}}
{{- if and $e.enabled (not $e.secret) }}
{{- fail "evacuate.enabled is true and evacuate.secret is empty; anybody who reaches a pod could put mail into its queue: name a Secret with a token" }}
{{- end }}
{{- if and $e.enabled (include "gatepost.postgres" .) }}
{{- fail "evacuate.enabled is true and config.spool.postgres is given; the queue is in the database, and there is nothing to hand over" }}
{{- end }}
{{- if and (eq $e.when "drain") (not $e.enabled) }}
{{- fail "evacuate.when is drain and evacuate.enabled is false; no pod would take the mail" }}
{{- end }}
{{- if and (or $e.orphans $e.claims) (not $e.enabled) }}
{{- fail "evacuate.orphans or evacuate.claims is given and evacuate.enabled is false; no pod would take the mail" }}
{{- end }}
{{- if and $e.orphans (or (not .Values.persistence.enabled) .Values.persistence.existingClaim) }}
{{- fail "evacuate.orphans is given, and pods have no claims of their own (persistence.enabled is false, or persistence.existingClaim is set)" }}
{{- end }}
{{- $replicas := include "gatepost.replicas" . | int -}}
{{- range $e.orphans }}
{{- if lt (int .) $replicas }}
{{- fail (printf "evacuate.orphans has %v and there are %v pods at least (replicas), so that one is no orphan" . $replicas) }}
{{- end }}
{{- end }}
{{- if eq $e.when "drain" }}
{{- $needed := add (int .Values.drain.delaySeconds) (int .Values.drain.sessionSeconds) 35 (int $e.seconds) 20 -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $needed) }}
{{- fail (printf "terminationGracePeriodSeconds is %v, and drain.delaySeconds %v + drain.sessionSeconds %v + 35 s + evacuate.seconds %v + 20 s are %v; the pod would be killed in the middle of it" .Values.terminationGracePeriodSeconds .Values.drain.delaySeconds .Values.drain.sessionSeconds $e.seconds $needed) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "gatepost.checkScaling" -}}
{{- $a := .Values.autoscaling -}}
{{- $k := .Values.keda -}}
{{- if and $a.enabled $k.enabled }}
{{- fail "autoscaling.enabled and keda.enabled are both true; two autoscalers would fight over the number of pods" }}
{{- end }}
{{- if and $a.enabled (gt (int $a.minReplicas) (int $a.maxReplicas)) }}
{{- fail (printf "autoscaling.minReplicas is %v and autoscaling.maxReplicas is %v" $a.minReplicas $a.maxReplicas) }}
{{- end }}
{{- if and $k.enabled (gt (int $k.minReplicas) (int $k.maxReplicas)) }}
{{- fail (printf "keda.minReplicas is %v and keda.maxReplicas is %v" $k.minReplicas $k.maxReplicas) }}
{{- end }}
{{- if and $a.enabled (not (or $a.cpu $a.queueMessages $a.sessions)) }}
{{- fail "autoscaling.enabled is true, and autoscaling.cpu, autoscaling.queueMessages and autoscaling.sessions are all 0; say by what to scale" }}
{{- end }}
{{- if and $a.enabled $a.cpu (not (dig "requests" "cpu" "" .Values.resources)) }}
{{- fail (printf "autoscaling.cpu is %v percent of resources.requests.cpu, which is empty" $a.cpu) }}
{{- end }}
{{- if and $k.enabled (not $k.prometheus) }}
{{- fail "keda.enabled is true and keda.prometheus is empty; say where Prometheus is" }}
{{- end }}
{{- if and $k.enabled (not (or $k.queueMessages $k.sessions)) }}
{{- fail "keda.enabled is true, and keda.queueMessages and keda.sessions are both 0; say by what to scale" }}
{{- end }}
{{- end }}
