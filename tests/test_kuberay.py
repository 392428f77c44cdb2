"""The files of docs/how-to/kuberay are what KubeRay, Dagster's chart, Dagster and Ray take; none of them is started."""

import copy
import shlex
from pathlib import Path

import click
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from pydantic import ValidationError

from helpers.kubernetes import DagsterValues, RayCluster, RayJob
from pipelines.cli.main import main

FOLDER = Path(__file__).parents[1] / "docs" / "how-to" / "kuberay"
MODELS = {"ray-cluster.yaml": RayCluster, "hardmoe-run.yaml": RayJob, "dagster-values.yaml": DagsterValues}
FREE = {"rayStartParams", "config", "additionalInstanceConfig"}  # checked by those who read them


def read(name):
    return yaml.safe_load((FOLDER / name).read_text("utf-8"))


def settings(document):
    """(path of a mapping, key) of each setting that the schema knows by its name."""
    paths = [()]
    for path in paths:
        part = document
        for step in path:
            part = part[step]
        if isinstance(part, dict):
            for key in part:
                if not FREE.intersection(path):
                    yield path, key
                paths.append((*path, key))
        elif isinstance(part, list):
            paths.extend((*path, number) for number in range(len(part)))


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_as_its_schema_wants_it_and_each_setting_counts(name):
    document = read(name)
    MODELS[name].model_validate(document)
    known = list(settings(document))
    assert len(known) > 8
    for path, key in known:
        changed = copy.deepcopy(document)
        part = changed
        for step in path:
            part = part[step]
        part[f"{key}s"] = part.pop(key)
        with pytest.raises(ValidationError):
            MODELS[name].model_validate(changed)


def test_every_file_has_a_schema():
    assert {path.name for path in FOLDER.iterdir()} == set(MODELS)


def test_the_files_name_the_same_cluster_image_secrets_and_study():
    cluster, job, values = (MODELS[name].model_validate(read(name)) for name in MODELS)
    assert job.spec.clusterSelector.cluster == cluster.metadata.name
    address = values.runLauncher.config.customRunLauncher.config["ray"]["address"]
    assert address == f"http://{cluster.metadata.name}-head-svc:8265"
    spec = cluster.spec
    pods = [spec.headGroupSpec.template.spec, *(group.template.spec for group in spec.workerGroupSpecs)]
    containers = [container for pod in pods for container in pod.containers]
    images = {f"{part.image.repository}:{part.image.tag}" for part in (values.dagsterWebserver, values.dagsterDaemon)}
    assert images == {container.image for container in containers}
    for env in (values.dagsterWebserver.env, values.dagsterDaemon.env):
        (token,) = [variable.valueFrom.secretKeyRef for variable in env if variable.name == "RAY_AUTH_TOKEN"]
        assert (token.name, token.key) == (spec.authOptions.secretName, "auth_token")
    for container in containers:
        variables = {variable.name: variable for variable in container.env}
        assert variables["DAGSTER_PG_PASSWORD"].valueFrom.secretKeyRef.name == values.global_.postgresqlSecretName
        assert variables["HARDMOE_STUDY"].value in job.spec.entrypoint
    gpus = sum(group.replicas for group in spec.workerGroupSpecs)
    assert values.concurrency.runs.maxConcurrentRuns == values.concurrency.pools.defaultLimit == gpus


def test_dagster_takes_the_launcher_and_what_else_the_chart_hands_on(tmp_path, monkeypatch):
    pytest.importorskip("dagster_ray", reason="pip install 'hardmoe[ray]'")
    values = read("dagster-values.yaml")
    instance = {"run_launcher": values["runLauncher"]["config"]["customRunLauncher"]}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(instance | values["additionalInstanceConfig"]))
    launcher = InstanceRef.from_dir(str(tmp_path)).run_launcher
    assert type(launcher).__name__ == "HardmoeRayLauncher"
    assert (launcher.cpus, launcher.gpus) == (4, 1)


def test_ray_and_hardmoe_know_the_options():
    scripts = pytest.importorskip("ray.scripts.scripts", reason="pip install 'hardmoe[ray]'")
    known = {option.removeprefix("--") for option in (o for p in scripts.start.params for o in p.opts)}
    spec = RayCluster.model_validate(read("ray-cluster.yaml")).spec
    for group in (spec.headGroupSpec, *spec.workerGroupSpecs):
        assert set(group.rayStartParams) <= known
    program, command, *words = shlex.split(read("hardmoe-run.yaml")["spec"]["entrypoint"])
    assert program == "hardmoe"
    parameters = main.get_command(click.Context(main), command).params
    options = {option for parameter in parameters for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
