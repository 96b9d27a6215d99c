{{/* Two jobs of Prometheus, each with its ports by name. Alerts take a job for one cluster, and Ray answers while every process of
ours is down. */}}
{{- define "step35.ports.metrics" -}}
{{- $first := .Values.monitoring.telemetry.metrics.port | int64 -}}
{{- range $number := until (include "step35.telemetryPorts" (dict "root" . "tier" "attention") | int) }}
telemetry-{{ $number }}: {{ add $first $number }}
{{- end }}
{{- end -}}

{{- define "step35.ports.ray-metrics" -}}
{metrics: 8080, as-metrics: 44217, dash-metrics: 44227}
{{- end -}}

{{/* What is scraped at a job's ports; a pod without a port of that name is no target. Takes root, job, ports. */}}
{{- define "step35.endpoints" -}}
{{- $m := .root.Values.monitoring -}}
{{- range $name, $_ := .ports }}
- {port: {{ $name }}, interval: {{ $m.intervalSeconds }}s}
{{- end }}
{{- if and (eq .job "metrics") $m.telemetry.metrics.expert_matrix }}
{{- range $number := until (include "step35.telemetryPorts" (dict "root" .root "tier" "head") | int) }}
- port: telemetry-{{ $number }}
  path: /metrics/experts
  interval: {{ $m.expertMatrixIntervalSeconds }}s
  relabelings:
    # The coordinator alone has this path; an instance of its own, because two targets of one name would write one series.
    - {action: keep, sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component], regex: head}
    - {sourceLabels: [__address__], targetLabel: instance, replacement: $1/metrics/experts}
{{- end }}
{{- end }}
{{- end -}}
