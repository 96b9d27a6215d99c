{{/* Parts of the three pod templates. Each takes a dict: root, tier (head, attention or experts), values (the tier's). */}}

{{- define "step35.pod.security" -}}
runAsNonRoot: true
runAsUser: {{ .Values.securityContext.runAsUser }}
runAsGroup: {{ .Values.securityContext.runAsGroup }}
fsGroup: {{ .Values.securityContext.runAsGroup }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "step35.container.security" -}}
{{- $rdma := and .root.Values.rdma.enabled (ne .tier "head") -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: {{ .values.readOnlyRootFilesystem }}
capabilities:
  drop: [ALL]
  {{- if $rdma }}
  add: [IPC_LOCK] # memory that a network card reads must stay where it is
  {{- end }}
{{- end -}}

{{/* As cluster/resources.py process_environment; a test compares them. */}}
{{- define "step35.pod.env" -}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_SERVE_LOG_TO_STDERR, value: "0"}
- {name: RAY_SERVE_SHUTDOWN_TIER_TIMEOUT_S, value: {{ add (include "step35.longestStream" .root | int64) 20 | quote }}}
- {name: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH, value: "cluster.proxy_callback:proxy_middlewares"}
- {name: RAY_worker_niceness, value: "0"}
- {name: TOKENIZERS_PARALLELISM, value: "false"}
- {name: RES_OPTIONS, value: "timeout:1 attempts:2"}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: HOME, value: /tmp}
# Where this pod is (cluster/config.py PodEnvironment).
- {name: STEP35_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: STEP35_POD_NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: STEP35_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: STEP35_POD_RAY_CLUSTER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['ray.io/cluster']"}}}
- {name: STEP35_POD_RAY_SERVICE, value: {{ include "step35.fullname" .root }}}
{{- if ne .tier "head" }}
{{- range $name, $value := .root.Values.collectivesEnv }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Where processes answer Prometheus, one name for each port: monitors go by names. */}}
{{- define "step35.pod.telemetryPorts" -}}
{{- $first := .root.Values.monitoring.telemetry.metrics.port | int64 -}}
{{- range $number := until (include "step35.telemetryPorts" . | int) }}
- {name: telemetry-{{ $number }}, containerPort: {{ add $first $number }}}
{{- end }}
{{- end -}}

{{- define "step35.pod.mounts" -}}
{{- $v := .root.Values -}}
- {name: config, mountPath: /etc/step35/cluster.yaml, subPath: cluster.yaml, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: ray-logs, mountPath: /tmp/ray}
- {name: shared-mem, mountPath: /dev/shm}
{{- if ne $v.model.weights.source "bundled" }}
- {name: weights, mountPath: /models, readOnly: true}
{{- end }}
{{- if and $v.apiKeys.enabled (eq .tier "attention") }}
- {name: api-keys, mountPath: /etc/step35/api-keys, readOnly: true}
{{- end }}
{{- if and $v.admin.enabled (eq .tier "head") }}
- {name: admin, mountPath: /etc/step35/admin, readOnly: true}
{{- end }}
{{- if and $v.monitoring.collector.existingSecret (eq .tier "attention") }}
- {name: collector, mountPath: /etc/step35/collector, readOnly: true}
{{- end }}
{{- end -}}

{{- define "step35.pod.volumes" -}}
{{- $v := .root.Values -}}
- name: config
  configMap: {name: {{ include "step35.fullname" .root }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .values.tmpSize }}}
# KubeRay knows these two by name and adds its own where they are missing.
- name: ray-logs
  emptyDir: {sizeLimit: {{ .values.tmpSize }}}
- name: shared-mem
  emptyDir: {medium: Memory, sizeLimit: {{ .values.shmSize }}}
{{- if ne $v.model.weights.source "bundled" }}
{{ include "step35.pod.weights" . }}
{{- end }}
{{- if and $v.apiKeys.enabled (eq .tier "attention") }}
- name: api-keys
  secret:
    secretName: {{ $v.apiKeys.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ $v.apiKeys.secretKey }}, path: keys}]
{{- end }}
{{- if and $v.admin.enabled (eq .tier "head") }}
- name: admin
  secret:
    secretName: {{ $v.admin.existingSecret }}
    defaultMode: 0440
    items: [{key: token, path: token}]
{{- end }}
{{- if and $v.monitoring.collector.existingSecret (eq .tier "attention") }}
- name: collector
  secret:
    secretName: {{ $v.monitoring.collector.existingSecret }}
    defaultMode: 0440
    items: [{key: {{ $v.monitoring.collector.secretKey }}, path: headers}]
{{- end }}
{{- if and (eq $v.model.weights.source "download") }}
- name: checksums
  configMap: {name: {{ $v.model.weights.download.checksumsConfigMap }}}
- name: fetch
  configMap: {name: {{ include "step35.fullname" .root }}-fetch}
{{- end }}
{{- end -}}

{{- define "step35.pod.weights" -}}
{{- $w := .root.Values.model.weights -}}
- name: weights
  {{- if eq $w.source "pvc" }}
  persistentVolumeClaim: {claimName: {{ $w.pvc.claimName }}, readOnly: true}
  {{- else if eq $w.source "hostPath" }}
  hostPath: {path: {{ $w.hostPath.path }}, type: Directory}
  {{- else if eq $w.source "image" }}
  image: {reference: {{ $w.image.reference }}, pullPolicy: IfNotPresent}
  {{- else if and $w.download.cache.hostPath (ne .tier "head") }}
  hostPath: {path: {{ $w.download.cache.hostPath }}, type: DirectoryOrCreate}
  {{- else }}
  emptyDir: {sizeLimit: {{ ternary "1Gi" $w.download.cache.sizeLimit (eq .tier "head") }}}
  {{- end }}
{{- end -}}

{{/* Verified download: files/fetch_weights.py. The head reads the checkpoint's descriptions, never its weights. */}}
{{- define "step35.pod.fetch" -}}
{{- $w := .root.Values.model.weights -}}
{{- if eq $w.source "download" }}
- name: fetch-weights
  image: {{ include "step35.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [python, /etc/step35/fetch/fetch_weights.py]
  args:
    - --repository={{ $w.download.repository }}
    - --revision={{ $w.download.revision }}
    - --folder={{ include "step35.checkpoint" .root }}
    - --checksums=/etc/step35/checksums/SHA256SUMS
    {{- if eq .tier "head" }}
    - --descriptions-only
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    - {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
    {{- with $w.download.endpoint }}
    - {name: HF_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    {{- with $w.download.existingSecret }}
    - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ . }}, key: token}}}
    {{- end }}
  securityContext:
    {{- include "step35.container.security" (dict "root" .root "tier" "head" "values" (dict "readOnlyRootFilesystem" true)) | nindent 4 }}
  resources:
    requests: {cpu: "1", memory: 2Gi}
    limits: {memory: 4Gi}
  volumeMounts:
    - {name: weights, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
    - {name: checksums, mountPath: /etc/step35/checksums, readOnly: true}
    - {name: fetch, mountPath: /etc/step35/fetch, readOnly: true}
{{- end }}
{{- end -}}

{{/* Where a tier's pods may run. */}}
{{- define "step35.pod.placement" -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- if and .values.topologySpread .values.topologySpread.topologyKey }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ .values.topologySpread.topologyKey }}
    whenUnsatisfiable: {{ .values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "step35.selector" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .tier }}
{{- end }}
{{- end -}}

{{- define "step35.pod.metadata" -}}
labels:
  {{- include "step35.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .tier }}
  {{- with .values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  # A change of what it digests makes KubeRay start a new cluster beside this one (values: upgrade).
  step35/heavy-digest: {{ include "step35.heavyDigest" .root }}
  {{- with .values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Ray's own health, asked inside the pod: these paths need no token. */}}
{{- define "step35.probe.raylet" -}}wget --tries 1 -T 2 -q -O- http://127.0.0.1:52365/api/local_raylet_healthz | grep -q success{{- end -}}
{{- define "step35.probe.gcs" -}}wget --tries 1 -T 4 -q -O- http://127.0.0.1:8265/api/gcs_healthz | grep -q success{{- end -}}
{{- define "step35.probe.proxy" -}}wget --tries 1 -T 4 -q -O- http://127.0.0.1:{{ .Values.gateway.port }}/-/healthz | grep -q success{{- end -}}

{{/* A worker group: one pod holds one actor, because its node has one CPU of Ray's and the actor takes it. */}}
{{- define "step35.worker" -}}
{{- $v := .root.Values -}}
groupName: {{ .tier }}
replicas: {{ .replicas }}
minReplicas: {{ .minReplicas }}
maxReplicas: {{ .maxReplicas }}
{{- if and $v.autoscaling.enabled (eq .tier "attention") }}
idleTimeoutSeconds: {{ $v.autoscaling.idleTimeoutSeconds }}
{{- end }}
labels: {step35/tier: {{ .tier }}}
rayStartParams: {num-cpus: "1"}
template:
  metadata:
    {{- include "step35.pod.metadata" . | nindent 4 }}
  spec:
    serviceAccountName: {{ include "step35.workerAccount" .root }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    terminationGracePeriodSeconds: {{ include "step35.gracePeriod" .root }}
    {{- with $v.image.pullSecrets }}
    imagePullSecrets:
      {{- range . }}
      - {name: {{ . }}}
      {{- end }}
    {{- end }}
    securityContext:
      {{- include "step35.pod.security" .root | nindent 6 }}
    {{- with include "step35.pod.placement" . }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .values.resourceClaims }}
    resourceClaims:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with include "step35.pod.fetch" . | trim }}
    initContainers:
      {{- . | nindent 6 }}
    {{- end }}
    containers:
      - name: ray-worker
        image: {{ include "step35.image" .root }}
        imagePullPolicy: {{ $v.image.pullPolicy }}
        securityContext:
          {{- include "step35.container.security" . | nindent 10 }}
        env:
          {{- include "step35.pod.env" . | nindent 10 }}
        ports:
          - {name: serve, containerPort: {{ $v.gateway.port }}}
          - {name: metrics, containerPort: 8080}
          {{- with include "step35.pod.telemetryPorts" . | trim }}
          {{- . | nindent 10 }}
          {{- end }}
        {{- $devices := dict }}
        {{- if .values.gpus }}{{ $_ := set $devices .values.gpuResource (.values.gpus | toString) }}{{ end }}
        {{- if $v.rdma.enabled }}{{ $_ := set $devices $v.rdma.resource ($v.rdma.count | toString) }}{{ end }}
        resources:
          requests:
            {{- toYaml (merge (dict) $devices (.values.resources.requests | default dict)) | nindent 12 }}
          limits:
            {{- toYaml (merge (dict) $devices (.values.resources.limits | default dict)) | nindent 12 }}
          {{- with .values.resourceClaims }}
          claims:
            {{- range . }}
            - {name: {{ .name }}}
            {{- end }}
          {{- end }}
        startupProbe:
          exec: {command: [bash, -c, {{ include "step35.probe.raylet" .root | quote }}]}
          periodSeconds: 10
          timeoutSeconds: 5
          failureThreshold: 60
        livenessProbe:
          exec: {command: [bash, -c, {{ include "step35.probe.raylet" .root | quote }}]}
          periodSeconds: 10
          timeoutSeconds: 5
          failureThreshold: 12
        # A proxy runs where a replica runs: a pod that still loads, and a spare, are alive and not ready.
        readinessProbe:
          exec: {command: [bash, -c, {{ printf "%s && %s" (include "step35.probe.raylet" .root) (include "step35.probe.proxy" .root) | quote }}]}
          periodSeconds: 5
          timeoutSeconds: 10
          failureThreshold: 2
        lifecycle:
          preStop:
            exec: {command: [bash, /etc/step35/drain/drain.sh, {{ sub (include "step35.gracePeriod" .root | int64) 30 | quote }}, {{ $v.gateway.port | toString | quote }}]}
        volumeMounts:
          {{- include "step35.pod.mounts" . | nindent 10 }}
          - {name: drain, mountPath: /etc/step35/drain, readOnly: true}
    volumes:
      {{- include "step35.pod.volumes" . | nindent 6 }}
      - name: drain
        configMap: {name: {{ include "step35.fullname" .root }}-drain}
{{- end -}}
