{{/* Names: KubeRay adds up to 16 characters to a RayService's, and refuses more than 47. */}}
{{- define "step35.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "step35.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "step35.labels" -}}
{{ include "step35.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: step35-cluster
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end -}}

{{- define "step35.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "step35.headAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ include "step35.fullname" . }}-head{{- else -}}{{ .Values.serviceAccount.headName }}{{- end -}}
{{- end -}}

{{- define "step35.workerAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ include "step35.fullname" . }}-worker{{- else -}}{{ .Values.serviceAccount.workerName }}{{- end -}}
{{- end -}}

{{/* The head speaks to the Kubernetes API for the autoscaler beside it and for the coordinator; workers never do. */}}
{{- define "step35.headCallsKubernetes" -}}
{{- if or .Values.autoscaling.enabled .Values.nodeWatch.enabled -}}true{{- end -}}
{{- end -}}

{{/* Seconds. ApiLimits' own default where the values say nothing. */}}
{{- define "step35.longestStream" -}}
{{- $seconds := dig "request_timeout_s" 600 .Values.gateway.limits -}}
{{- ceil $seconds | int64 -}}
{{- end -}}

{{- define "step35.gracePeriod" -}}
{{- if kindIs "invalid" .Values.budgets.terminationGracePeriodSeconds -}}
{{- add (include "step35.longestStream" . | int64) 60 -}}
{{- else -}}
{{- .Values.budgets.terminationGracePeriodSeconds | int64 -}}
{{- end -}}
{{- end -}}

{{- define "step35.deletionDelay" -}}
{{- if kindIs "invalid" .Values.budgets.clusterDeletionDelaySeconds -}}
{{- add (include "step35.longestStream" . | int64) 60 -}}
{{- else -}}
{{- .Values.budgets.clusterDeletionDelaySeconds | int64 -}}
{{- end -}}
{{- end -}}

{{- define "step35.attentionReplicas" -}}
{{- if .Values.autoscaling.enabled -}}{{ max (.Values.attention.replicas | int64) (.Values.autoscaling.minReplicas | int64) }}{{- else -}}{{ .Values.attention.replicas | int64 }}{{- end -}}
{{- end -}}

{{/* Where the checkpoint is in every pod. */}}
{{- define "step35.checkpoint" -}}
{{- if eq .Values.model.weights.source "bundled" -}}
/opt/step35/nano
{{- else if .Values.model.weights.subPath -}}
/models/{{ .Values.model.weights.subPath }}
{{- else -}}
/models
{{- end -}}
{{- end -}}

{{/* An AutoscalingConfig (cluster/autoscaling.py). */}}
{{- define "step35.autoscaling" -}}
{{- $v := .Values.autoscaling -}}
max_replicas: {{ $v.maxReplicas }}
target_sequences: {{ $v.targetOngoingRequests }}
upscale_delay_s: {{ $v.upscaleDelaySeconds }}
downscale_delay_s: {{ $v.downscaleDelaySeconds }}
{{- end -}}

{{/* A TelemetryConfig (cluster/telemetry.py): the values', and where this pod listens and finds the Secret. */}}
{{- define "step35.telemetry" -}}
{{- $telemetry := deepCopy .Values.monitoring.telemetry -}}
{{- $_ := set $telemetry.metrics "host" "0.0.0.0" -}}
{{- if .Values.monitoring.collector.existingSecret -}}
{{- $_ := set $telemetry.tracing "headers_file" "/etc/step35/collector/headers" -}}
{{- end -}}
{{- toYaml $telemetry -}}
{{- end -}}

{{/* How many ports the processes of a tier's pod may take. An expert has its pod to itself, because it takes the one CPU
of Ray's; a coordinator may start while the one before it ends; an attention pod may hold all gateways besides. */}}
{{- define "step35.telemetryPorts" -}}
{{- $metrics := .root.Values.monitoring.telemetry.metrics -}}
{{- if not $metrics.enabled -}}0
{{- else -}}{{- get (dict "experts" 1 "head" 2 "attention" ($metrics.num_ports | int64)) .tier -}}
{{- end -}}
{{- end -}}

{{/* Port of the address of the collector of traces. */}}
{{- define "step35.collectorPort" -}}
{{- $url := urlParse .Values.monitoring.telemetry.tracing.endpoint -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{/* Exactly a ClusterConfig (cluster/config.py); tests load it into one. */}}
{{- define "step35.clusterConfig" -}}
{{- $v := .Values -}}
checkpoint: {{ include "step35.checkpoint" . }}
{{- with $v.model.name }}
model_name: {{ . | quote }}
{{- end }}
attention:
  num_replicas: {{ include "step35.attentionReplicas" . }}
  device: {{ $v.attention.device }}
  resources: {num_cpus: 1, num_gpus: {{ $v.attention.gpus }}, labels: {step35/tier: attention}}
  {{- if $v.autoscaling.enabled }}
  autoscaling:
    {{- include "step35.autoscaling" . | nindent 4 }}
  {{- end }}
  {{- with $v.attention.engine }}
  engine:
    {{- toYaml . | nindent 4 }}
  {{- end }}
experts:
  ep_size: {{ $v.experts.epSize }}
  num_redundant_slots: {{ $v.experts.redundantSlots }}
  device: {{ $v.experts.device }}
  resources: {num_cpus: 1, num_gpus: {{ $v.experts.gpus }}, labels: {step35/tier: experts}}
  {{- with $v.experts.engine }}
  engine:
    {{- toYaml . | nindent 4 }}
  {{- end }}
transport: {{ $v.transport }}
{{- if not (kindIs "invalid" $v.collectiveCapacityRows) }}
collective_capacity_rows: {{ $v.collectiveCapacityRows | int64 }}
{{- end }}
deterministic: {{ $v.deterministic }}
{{- with $v.balancing }}
balancing:
  {{- toYaml . | nindent 2 }}
{{- end }}
gateway:
  num_replicas: {{ $v.gateway.replicas }}
  host: 0.0.0.0
  port: {{ $v.gateway.port }}
  {{- if $v.apiKeys.enabled }}
  api_keys_file: /etc/step35/api-keys/keys
  {{- end }}
  {{- if not (kindIs "invalid" $v.model.maxContextTokens) }}
  max_context_tokens: {{ $v.model.maxContextTokens | int64 }}
  {{- end }}
  {{- with $v.gateway.limits }}
  limits:
    {{- toYaml . | nindent 4 }}
  {{- end }}
admin:
  enabled: {{ $v.admin.enabled }}
  host: 127.0.0.1
  port: {{ $v.admin.port }}
  token_file: /etc/step35/admin/token
control:
  {{- toYaml (merge (dict "drain_timeout_s" (include "step35.longestStream" . | int64)) $v.control) | nindent 2 }}
kubernetes:
  enabled: {{ ternary "auto" "off" $v.nodeWatch.enabled | quote }}
  nodes: {{ $v.nodeWatch.nodes }}
  {{- with $v.kubernetes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
telemetry:
  {{- include "step35.telemetry" . | nindent 2 }}
log_level: {{ $v.logLevel }}
{{- end -}}

{{/* What cannot change under a running cluster. Replica numbers can: Serve and KubeRay apply them in place. */}}
{{- define "step35.heavyDigest" -}}
{{- $config := include "step35.clusterConfig" . | fromYaml -}}
{{- $_ := unset $config.attention "num_replicas" -}}
{{- $_ := unset $config.attention "autoscaling" -}}
{{- $_ := unset $config.gateway "num_replicas" -}}
{{- toJson $config | sha256sum -}}
{{- end -}}

{{/* What Ray Serve is told. Replica numbers stand here too, because here they change in place. */}}
{{- define "step35.serveConfig" -}}
{{- $v := .Values -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ $v.gateway.port }}
  # The API has deadlines of its own; Serve's would cut a stream without a word.
  request_timeout_s: null
logging_config:
  log_level: {{ $v.logLevel | upper }}
  encoding: {{ $v.monitoring.telemetry.logs.format | upper }}
  enable_access_log: false
applications:
  - name: step35
    route_prefix: null
    import_path: cluster.serve_apps:engine
    args: {config: /etc/step35/cluster.yaml}
    deployments:
      - name: Coordinator
        ray_actor_options: {num_cpus: 0, label_selector: {step35/tier: head}}
      - name: AttentionActor
        {{- if $v.autoscaling.enabled }}
        num_replicas: auto
        autoscaling_config:
          # No initial_replicas: Serve would go back to them whenever one of these values changes.
          min_replicas: {{ include "step35.attentionReplicas" . }}
          max_replicas: {{ $v.autoscaling.maxReplicas }}
          target_ongoing_requests: {{ $v.autoscaling.targetOngoingRequests }}
          {{- if eq $v.autoscaling.policy "cluster.scaling_policy:AttentionScaling" }}
          # The policy has delays of its own; Serve's would come on top.
          upscale_delay_s: 0
          downscale_delay_s: 0
          policy:
            policy_function: {{ $v.autoscaling.policy | quote }}
            policy_kwargs:
              {{- include "step35.autoscaling" . | nindent 14 }}
          {{- else }}
          upscale_delay_s: {{ $v.autoscaling.upscaleDelaySeconds }}
          downscale_delay_s: {{ $v.autoscaling.downscaleDelaySeconds }}
          {{- with $v.autoscaling.policy }}
          policy: {policy_function: {{ . | quote }}}
          {{- end }}
          {{- end }}
        {{- else }}
        num_replicas: {{ $v.attention.replicas }}
        {{- end }}
  - name: step35-gateway
    route_prefix: /
    import_path: cluster.serve_apps:gateway
    args: {config: /etc/step35/cluster.yaml}
    deployments:
      - name: Gateway
        num_replicas: {{ $v.gateway.replicas }}
        # Beside the tokenizer, and never on an expert's pod.
        ray_actor_options: {num_cpus: 0, label_selector: {step35/tier: attention}}
{{- end -}}
