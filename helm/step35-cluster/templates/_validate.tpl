{{/* What the schema cannot say: values that exclude or need each other. Every message names its value. */}}
{{- define "step35.validate" -}}
{{- $v := .Values -}}
{{- $w := $v.model.weights -}}
{{- $stream := include "step35.longestStream" . | int64 -}}
{{- if and $v.apiKeys.enabled (not $v.apiKeys.existingSecret) -}}
{{- fail "apiKeys.existingSecret: name the Secret with the API keys, or set apiKeys.enabled=false to leave the API open" -}}
{{- end -}}
{{- if and $v.admin.enabled (not $v.admin.existingSecret) -}}
{{- fail "admin.existingSecret: name the Secret with the operator's token, or set admin.enabled=false" -}}
{{- end -}}
{{- if and (eq $w.source "pvc") (not $w.pvc.claimName) -}}
{{- fail "model.weights.pvc.claimName: needed by model.weights.source pvc" -}}
{{- end -}}
{{- if and (eq $w.source "hostPath") (not $w.hostPath.path) -}}
{{- fail "model.weights.hostPath.path: needed by model.weights.source hostPath" -}}
{{- end -}}
{{- if and (eq $w.source "image") (not $w.image.reference) -}}
{{- fail "model.weights.image.reference: needed by model.weights.source image, with a digest" -}}
{{- end -}}
{{- if eq $w.source "download" -}}
{{- range $name := list "repository" "revision" "checksumsConfigMap" -}}
{{- if not (index $w.download $name) -}}
{{- fail (printf "model.weights.download.%s: needed by model.weights.source download" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $tier := list "attention" "experts" -}}
{{- $t := index $v $tier -}}
{{- if and (eq $t.device "cuda") (lt ($t.gpus | int64) 1) -}}
{{- fail (printf "%s.gpus: device cuda needs at least 1, got %v" $tier $t.gpus) -}}
{{- end -}}
{{- if and (eq $t.device "cpu") (gt ($t.gpus | int64) 0) -}}
{{- fail (printf "%s.gpus: device cpu uses none, got %v" $tier $t.gpus) -}}
{{- end -}}
{{- if and $v.deterministic (ne $t.device "cpu") -}}
{{- fail (printf "deterministic: proven on device cpu only, and %s.device is %s" $tier $t.device) -}}
{{- end -}}
{{- if and (eq $v.transport "nccl") (ne $t.device "cuda") -}}
{{- fail (printf "transport: nccl needs both tiers on cuda, and %s.device is %s" $tier $t.device) -}}
{{- end -}}
{{- end -}}
{{- if and (eq ($v.experts.redundantSlots | int64) 0) (ne (dig "mode" "off" $v.balancing) "off") -}}
{{- fail "experts.redundantSlots: balancing.mode needs at least 1, experts move through a slot that is free" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (lt ($v.autoscaling.maxReplicas | int64) (include "step35.attentionReplicas" . | int64)) -}}
{{- fail (printf "autoscaling.maxReplicas: %v is less than autoscaling.minReplicas or attention.replicas (%s)" $v.autoscaling.maxReplicas (include "step35.attentionReplicas" .)) -}}
{{- end -}}
{{- if le (include "step35.gracePeriod" . | int64) $stream -}}
{{- fail (printf "budgets.terminationGracePeriodSeconds: must be above gateway.limits.request_timeout_s (%d), or streams are cut" $stream) -}}
{{- end -}}
{{- if le (include "step35.deletionDelay" . | int64) $stream -}}
{{- fail (printf "budgets.clusterDeletionDelaySeconds: must be above gateway.limits.request_timeout_s (%d), or streams are cut" $stream) -}}
{{- end -}}
{{- if and $v.admin.enabled (eq ($v.admin.port | int64) ($v.gateway.port | int64)) -}}
{{- fail (printf "admin.port: %v is gateway.port" $v.admin.port) -}}
{{- end -}}
{{- if and (not $v.serviceAccount.create) (not (and $v.serviceAccount.headName $v.serviceAccount.workerName)) -}}
{{- fail "serviceAccount.headName and serviceAccount.workerName: needed without serviceAccount.create" -}}
{{- end -}}
{{- if and $v.ray.gcsFaultTolerance.enabled (not $v.ray.gcsFaultTolerance.redisAddress) -}}
{{- fail "ray.gcsFaultTolerance.redisAddress: needed by ray.gcsFaultTolerance.enabled" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) -}}
{{- fail "ingress.host: needed by ingress.enabled" -}}
{{- end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: needed by httpRoute.enabled" -}}
{{- end -}}
{{- if and $v.nodeWatch.nodes (not $v.nodeWatch.enabled) -}}
{{- fail "nodeWatch.nodes: needs nodeWatch.enabled" -}}
{{- end -}}
{{- include "step35.validateTelemetry" . -}}
{{- end -}}

{{- define "step35.validateTelemetry" -}}
{{- $v := .Values -}}
{{- $metrics := $v.monitoring.telemetry.metrics -}}
{{- if $metrics.enabled -}}
{{- $first := $metrics.port | int64 -}}
{{- $last := sub (add $first ($metrics.num_ports | int64)) 1 -}}
{{- if lt $first 1 -}}
{{- fail "monitoring.telemetry.metrics.port: 0 lets each process choose one, which no monitor could know" -}}
{{- end -}}
{{- if gt $last 65535 -}}
{{- fail (printf "monitoring.telemetry.metrics.port: %d and num_ports %v end beyond 65535" $first $metrics.num_ports) -}}
{{- end -}}
{{- /* Ours, and those that Ray has in every cluster (_pods.tpl, rayservice.yaml). */ -}}
{{- $taken := dict "gateway.port" $v.gateway.port "admin.port" $v.admin.port "Ray's" 6379 "Ray's dashboard" 8265 "Ray's metrics" 8080 "Ray's agent" 52365 "the autoscaler's metrics" 44217 "the dashboard's metrics" 44227 -}}
{{- range $whose, $port := $taken -}}
{{- if and (ge ($port | int64) $first) (le ($port | int64) $last) -}}
{{- fail (printf "monitoring.telemetry.metrics.port: %d to %d include %s %d" $first $last $whose ($port | int64)) -}}
{{- end -}}
{{- end -}}
{{- if lt ($metrics.num_ports | int64) (add ($v.gateway.replicas | int64) 2) -}}
{{- fail (printf "monitoring.telemetry.metrics.num_ports: %v is too few for gateway.replicas %v: one attention pod may hold all of them, an attention actor, and one that is being replaced" $metrics.num_ports $v.gateway.replicas) -}}
{{- end -}}
{{- end -}}
{{- if and $v.monitoring.collector.existingSecret (not $v.monitoring.telemetry.tracing.endpoint) -}}
{{- fail "monitoring.telemetry.tracing.endpoint: needed by monitoring.collector.existingSecret" -}}
{{- end -}}
{{- end -}}
