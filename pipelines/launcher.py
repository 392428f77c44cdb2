"""Runs of Dagster's UI, schedules, sensors and backfills as jobs of a Ray cluster: dagster.yaml names the launcher.

A job is a process of its own on a node that has room for it. `hardmoe run` does not come here: its tasks go to warm
workers (pipelines/run/pools). The command line of a job holds the instance's settings, and its record the variables
that it is given; Ray shows both to everybody who may see its dashboard. So neither may have a secret: nodes have theirs
in the environment of `ray start`.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._cli.api import ExecuteRunArgs
from dagster._core.instance import DagsterInstance
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster._serdes import serialize_value
from dagster_ray import RayRunLauncher
from dagster_ray.configs import USER_DEFINED_RAY_KEY
from dagster_ray.core.run_launcher import RayLauncherConfig, get_job_submission_id_from_run_id

from moe_core.errors import BadSetting
from moe_core.stages.graph import GRAPH
from pipelines.instance.secrets import is_secret, secrets_in_clear

JOB = "hardmoe/ray-job"  # tag of a run: the job that carries it out
PASSED = ("HARDMOE_STUDY", "DAGSTER_HOME", "DAGSTER_DISABLE_TELEMETRY")  # to each job, where they are set here
END_SECONDS = 30  # for a run that is terminated to end in order; then Ray kills it
CODE = "pipelines.definitions"  # serves the study of HARDMOE_STUDY


class HardmoeRayLauncher(RayRunLauncher):
    """dagster-ray's launcher, for the runs of a study.

    `num_gpus` are the GPUs of a run that computes on one, 1 where it is not set, 0 on a cluster without GPUs; other
    runs get none, and see none. `num_cpus` are the cores of each run: without any, Ray would start all on the head.
    The tag dagster-ray/config of a run goes before both.
    """

    def __init__(
        self,
        address: str,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        env_vars: Sequence[str] | None = None,
        **more: Any,
    ) -> None:
        self.variables = [*PASSED, *(env_vars or ())]
        super().__init__(address, **more)
        self.cpus = 1.0 if num_cpus is None else num_cpus
        self.gpus = 1.0 if num_gpus is None else num_gpus

    def register_instance(self, instance: DagsterInstance) -> None:
        super().register_instance(instance)
        self._check()

    def _check(self) -> None:
        """Raises BadSetting where a secret would be shown in the cluster's dashboard."""
        if clear := secrets_in_clear(self._instance.get_ref()):
            raise BadSetting(
                f"dagster.yaml has a secret in clear, which Ray would show in the command line of each run: "
                f"{', '.join(clear)}; write {{env: NAME}} there, and set the variable for `ray start` on each node"
            )
        _check_variables(self.variables)

    def launch_run(self, context: LaunchRunContext) -> None:
        run, origin = context.dagster_run, context.job_code_origin
        assert origin is not None
        self._check()
        asked = self._asked(run)
        _check_variables(asked.env_vars or ())
        pointer = origin.repository_origin.code_pointer
        if getattr(pointer, "module", None) == CODE and not any(map(_names_study, asked.env_vars or ())):
            raise BadSetting("HARDMOE_STUDY is not set for Dagster's daemon and webserver: a run has its study from it")
        arguments = ExecuteRunArgs(origin, run.run_id, self._instance.get_ref(), set_exit_code_on_failure=True)
        # the python of the code server, since `dagster` need not be in the PATH of a node
        command = [origin.executable_path, "-m", "dagster", "api", "execute_run", serialize_value(arguments)]
        job = get_job_submission_id_from_run_id(run.run_id)
        self._instance.add_run_tags(run.run_id, {JOB: job})
        tags = {**run.tags, USER_DEFINED_RAY_KEY: asked.model_dump_json(exclude_none=True)}
        # `exec`, since Ray kills the shell where the head is lost, and its child would go on
        self._launch_ray_job(job, f"exec {shlex.join(command)}", run.with_tags(tags))

    def _asked(self, run: dg.DagsterRun) -> RayLauncherConfig:
        """What a run asks the cluster for."""
        asked = RayLauncherConfig.model_validate_json(run.tags.get(USER_DEFINED_RAY_KEY, "{}"))
        cpus = self.cpus if asked.num_cpus is None else asked.num_cpus
        gpus = self.gpus if asked.num_gpus is None else asked.num_gpus
        if asked.num_gpus is None and not self._computes_on_gpus(run):
            gpus = 0
        hidden = () if gpus else ("CUDA_VISIBLE_DEVICES=",)  # Ray would show it all
        variables = [*self.variables, *(asked.env_vars or ()), f"RAY_JOB_STOP_WAIT_TIME_S={END_SECONDS}", *hidden]
        return asked.model_copy(update={"num_cpus": cpus, "num_gpus": gpus, "env_vars": variables})

    def _computes_on_gpus(self, run: dg.DagsterRun) -> bool:
        """Whether a step does; the steps, since a run of a whole job selects no asset."""
        assert run.execution_plan_snapshot_id
        plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        stages = {step.rsplit("__", 1)[-1] for step in plan.step_keys_to_execute}  # without the prefix of assets
        return any(GRAPH[stage].uses_gpu for stage in stages & GRAPH.keys())

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is not None and _is_ours(run) and super().terminate(run_id)

    @property
    def supports_resume_run(self) -> bool:
        """A run is one process: what died is tried again as a new run, which resumes from the checkpoint."""
        return False

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Running, too, where nobody can tell: runs of commands have no job, and a head under load may not answer."""
        if not _is_ours(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        result = super().check_run_worker_health(run)
        if result.status is WorkerStatus.UNKNOWN and "status code 404" not in (result.msg or ""):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return result

    def get_run_worker_debug_info(self, run: dg.DagsterRun, include_container_logs: bool | None = True) -> str | None:
        """Status and message of the job, which enter the message of the run that it failed."""
        if not _is_ours(run):
            return None
        job = self.client.get_job_info(run.tags[JOB])
        return f"Ray job {run.tags[JOB]}: {job.status}, {job.message}"


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether a job carries the run out. A run that repeats another has the tags of that one until it is launched."""
    return run.tags.get(JOB) == get_job_submission_id_from_run_id(run.run_id)


def _check_variables(variables: Sequence[str]) -> None:
    """Raises BadSetting where one that would be sent looks like a secret."""
    for variable in variables:
        name, equals, value = variable.partition("=")
        if is_secret(name, value if equals else os.environ.get(name, "")):
            raise BadSetting(
                f"env_vars of the launcher has {name}, which Ray would show in its record of each run: "
                "leave it out, and set it for `ray start` on each node"
            )


def _names_study(variable: str) -> bool:
    name, equals, value = variable.partition("=")
    return name == "HARDMOE_STUDY" and bool(value if equals else os.environ.get(name))
