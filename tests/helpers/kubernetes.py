"""The parts of other projects' schemas that docs/how-to/kuberay uses, each field by its name and type.

- RayCluster and RayJob, API ray.io/v1: openAPIV3Schema of ray-operator/config/crd/bases in ray-project/kuberay v1.7.0
  (Apache-2.0), with the rules that its operator checks for token authentication and `clusterSelector`.
- Values of Dagster's chart: helm/dagster/schema in dagster-io/dagster (Apache-2.0) at 835892b and, of `concurrency`,
  at 7dade76; the keys of runMonitoring and runRetries by its templates/configmap-instance.yaml.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE])?$")] | int
ResourceName = Literal["cpu", "memory", "ephemeral-storage", "nvidia.com/gpu", "amd.com/gpu"]
Count = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Part):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    namespace: str = ""
    labels: dict[str, str] = {}


class KeyOf(Part):
    name: str
    key: str


class Source(Part):
    secretKeyRef: KeyOf


class Variable(Part):
    name: str
    value: str | None = None
    valueFrom: Source | None = None

    @model_validator(mode="after")
    def _has_one_value(self):
        assert (self.value is None) != (self.valueFrom is None), f"{self.name}: wanted value or valueFrom"
        return self


class Port(Part):
    name: Literal["gcs-server", "dashboard", "client", "metrics"]
    containerPort: Count


class Mount(Part):
    name: str
    mountPath: str
    readOnly: bool = False


class Resources(Part):
    requests: dict[ResourceName, Quantity] = {}
    limits: dict[ResourceName, Quantity] = {}


class Container(Part):
    name: str
    image: str
    env: list[Variable] = []
    ports: list[Port] = []
    resources: Resources = Resources()
    volumeMounts: list[Mount] = []


class Claim(Part):
    claimName: str


class EmptyDir(Part):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class Volume(Part):
    name: str
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None


class PodSpec(Part):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []
    terminationGracePeriodSeconds: Count = 30

    @model_validator(mode="after")
    def _mounts_are_of_volumes(self):
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        assert mounted == {volume.name for volume in self.volumes}, mounted
        return self


class Template(Part):
    spec: PodSpec


class HeadGroup(Part):
    template: Template
    rayStartParams: dict[str, str] = {}
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"


class WorkerGroup(Part):
    groupName: str
    template: Template
    minReplicas: Count
    maxReplicas: Count
    replicas: Count
    rayStartParams: dict[str, str] = {}


class Auth(Part):
    mode: Literal["disabled", "token"]
    secretName: str = ""


class ClusterSpec(Part):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str
    authOptions: Auth

    @model_validator(mode="after")
    def _knows_tokens(self):
        assert tuple(map(int, self.rayVersion.split("."))) >= (2, 52, 0)
        return self


class RayCluster(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class Selector(Part):
    cluster: str = Field(alias="ray.io/cluster")


class JobSpec(Part):
    entrypoint: str
    clusterSelector: Selector
    entrypointNumCpus: float | int = 0
    submissionMode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]
    backoffLimit: Count


class RayJob(Part):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


class Image(Part):
    repository: str
    tag: str
    pullPolicy: Literal["Always", "IfNotPresent", "Never"]


class Service(Part):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"]
    port: Count


class Webserver(Part):
    image: Image
    service: Service
    env: list[Variable]


class RunMonitoring(Part):
    enabled: bool
    startTimeoutSeconds: Count
    pollIntervalSeconds: Count
    freeSlotsAfterRunEndSeconds: Count


class RunRetries(Part):
    enabled: bool


class Daemon(Part):
    enabled: bool
    image: Image
    env: list[Variable]
    runMonitoring: RunMonitoring
    runRetries: RunRetries


class Deployment(Part):
    name: str
    image: Image
    codeServerArgs: list[str]
    port: Count
    env: list[Variable]
    volumeMounts: list[Mount]
    volumes: list[Volume]


class Deployments(Part):
    enabled: bool
    enableSubchart: bool
    deployments: list[Deployment]


class DatabasePort(Part):
    port: Count


class PostgreSQL(Part):
    enabled: Literal[False]
    postgresqlScheme: str
    postgresqlHost: str
    postgresqlUsername: str
    postgresqlDatabase: str
    service: DatabasePort


class Disabled(Part):
    enabled: Literal[False]


class Global(Part):
    postgresqlSecretName: str


class Custom(Part):
    module: str
    class_: str = Field(alias="class")
    config: dict[str, Any]


class Launchers(Part):
    customRunLauncher: Custom


class RunLauncher(Part):
    type: Literal["CustomRunLauncher"]
    config: Launchers


class Pools(Part):
    granularity: Literal["run", "op"]
    defaultLimit: Count


class Runs(Part):
    maxConcurrentRuns: Count


class Concurrency(Part):
    enabled: bool
    pools: Pools
    runs: Runs


class DagsterValues(Part):
    """Not those of `additionalInstanceConfig` and of the launcher, which Dagster itself checks."""

    global_: Global = Field(alias="global")
    generatePostgresqlPasswordSecret: bool
    telemetry: Disabled
    postgresql: PostgreSQL
    rabbitmq: Disabled
    redis: Disabled
    runLauncher: RunLauncher
    dagsterWebserver: Webserver
    dagsterDaemon: Daemon
    concurrency: Concurrency
    deployments: Deployments = Field(alias="dagster-user-deployments")
    additionalInstanceConfig: dict[str, Any]
