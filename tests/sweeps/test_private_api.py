"""What we use of Ray and Optuna that neither promises to keep: there, with the signature that we expect.

A version that changes it fails here, by name, and not in the middle of a sweep. Imports of private modules need no
test: they fail by themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optuna
import pytest
import ray
from optuna.storages._rdb import models
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.working_dir_setup import WorkingDirectorySetupCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.controller.state import RunningState
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable.function_trainable import FunctionTrainable

from sweeps import cluster_view, ray_cluster, ray_token, ray_train, ray_tune, reservations, study_storage
from sweeps.database import Database
from sweeps.ray_tune import CLOUD_KEYS


def parameters(function: Callable[..., Any]) -> list[str]:
    """By name; Ray adds one of its own to the methods of what has been made an actor in this process."""
    return [name for name in inspect.signature(function).parameters if name != "_ray_trace_ctx"]


@pytest.mark.parametrize(
    ("parent", "ours", "name", "expected"),
    [
        (ElasticScalingPolicy, ray_train._ElasticPolicy, "_count_possible_workers", ["self", "reserved_resources"]),
        (ElasticScalingPolicy, ray_train._ElasticPolicy, "_get_reserved_resources", ["self"]),
        (TrainController, ray_train._Controller, "_run_control_loop_iteration", ["self"]),
        (TrainController, ray_train._Controller, "_poll_workers", ["self"]),
        (TorchTrainer, ray_train._GroupTrainer, "_create_default_callbacks", ["self"]),
        (DefaultFailurePolicy, ray_train._RetryDeaths, "make_decision", ["self", "training_failed_error"]),
        (
            TuneReportCallback,
            ray_tune._GroupReport,
            "after_report",
            ["self", "run_context", "metrics", "checkpoint"],
        ),
        (FunctionTrainable, ray_tune._TrialProcess, "_trainable_func", ["self", "config"]),
        (FunctionTrainable, ray_tune._TrialProcess, "cleanup", ["self"]),
        (FunctionTrainable, ray_tune._TrialProcess, "reset_config", ["self", "new_config"]),
        (JournalFileBackend, study_storage.JournalFile, "append_logs", ["self", "logs"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_we_override_is_what_the_parent_has(parent: Any, ours: Any, name: str, expected: list[str]) -> None:
    assert parameters(getattr(parent, name)) == parameters(getattr(ours, name)) == expected
    assert inspect.iscoroutinefunction(getattr(parent, name)) is inspect.iscoroutinefunction(getattr(ours, name))


def test_the_controller_is_started_where_we_start_it() -> None:
    """Ours takes whatever the trainer gives and adds two policies by these names."""
    assert issubclass(ray_train._GroupTrainer, TorchTrainer)
    method = TorchTrainer._initialize_and_run_controller
    assert parameters(method) == ["self", "controller_init_kwargs"]
    given = parameters(TrainController.__init__)
    assert {"failure_policy", "scaling_policy", "callbacks", "train_run_context"} <= set(given)
    for name in ("run", "abort", "get_state", "get_result"):
        assert parameters(getattr(TrainController, name)) == ["self"]


def test_what_we_read_of_ray_train_is_there() -> None:
    source = inspect.getsource(WorkerGroup)
    assert "self._world_rank_to_ongoing_poll" in source
    assert "self._worker_group" in inspect.getsource(TrainController.__init__)
    assert isinstance(ElasticScalingPolicy.GET_RESERVED_RESOURCES_INTERVAL_S, int)
    source = inspect.getsource(ElasticScalingPolicy.__init__)
    assert "self._latest_reserved_resources_query_time" in source
    assert RunningState().is_terminal() is False
    assert isinstance(ray.train.ScalingConfig(num_workers=1)._resources_per_worker_not_none, dict)
    for callback in (PlacementGroupCleanerCallback, WorkingDirectorySetupCallback):
        assert callback.__name__ in inspect.getsource(TorchTrainer._create_default_callbacks)
    assert "self._training_actor_item_queue" in inspect.getsource(TuneReportCallback.__init__)
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

    asked = parameters(coordinator._AutoscalingCoordinatorActor.get_reserved_resources)
    assert asked == ["self", "requester_id", "recompute"]


def test_the_settings_of_worker_groups_are_known_to_ray() -> None:
    from ray.train.v2._internal import constants

    known = {value for name, value in vars(constants).items() if name.endswith("ENV_VAR")}
    assert set(ray_train.GROUP_ENVIRONMENT) <= known


@pytest.mark.parametrize(
    ("function", "first"),
    [
        (ray_cluster.create_gcs_channel, ["address"]),
        (ray_cluster.canonicalize_bootstrap_address_or_die, ["addr"]),
        (ray_cluster.get_node_to_connect_for_driver, ["gcs_client"]),
        (cluster_view.is_autoscaler_v2, ["fetch_from_server"]),
        (cluster_view._internal_kv_get, ["key"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_we_call_of_ray_takes_what_we_give(function: Callable[..., Any], first: list[str]) -> None:
    assert parameters(function)[: len(first)] == first
    assert "timeout_seconds" in parameters(ray_cluster.get_node_to_connect_for_driver)


def test_what_we_read_of_ray_is_there() -> None:
    assert isinstance(ray._raylet.RAY_NODE_ID_KEY, str)
    assert isinstance(ray._raylet.RAY_NODE_GROUP_KEY, str)
    assert callable(ray._raylet.GcsClient)
    assert hasattr(ray_cluster.stdout_deduplicator, "skip_re")
    assert hasattr(ray._private.worker, "_global_node")
    assert callable(ray._private.state.actors)
    assert hasattr(ray._private.state.GlobalState, "_connect_and_get_accessor")
    fields = reservations.gcs_pb2.PlacementGroupTableData.DESCRIPTOR.fields_by_name
    assert {"placement_group_id", "creator_actor_dead", "creator_job_id", "creator_actor_id", "state"} <= set(fields)
    assert isinstance(reservations.gcs_pb2.PlacementGroupTableData.REMOVED, int)
    assert "ray_version" in ray_cluster.gcs_service_pb2.CheckAliveReply.DESCRIPTOR.fields_by_name
    assert callable(ray_token.Config.initialize)


def test_tune_asks_a_set_which_variables_it_copies_into_the_environment_of_trials() -> None:
    """Where all of a cluster can read them: keys are taken out of it."""
    from ray.tune.execution import class_cache

    assert isinstance(class_cache.ENV_VARS_TO_PROPAGATE, set)
    assert [name for name in class_cache.ENV_VARS_TO_PROPAGATE if "AWS" in name and name not in CLOUD_KEYS] == []


def test_optuna_journals_an_epoch_by_the_codes_that_need_no_fsync() -> None:
    epoch = (JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE, JournalOperation.SET_TRIAL_USER_ATTR)
    assert epoch == study_storage._EPOCH_OPERATIONS


def test_what_we_read_of_optuna_is_there(tmp_path: Any) -> None:
    (tmp_path / "x.journal").touch()
    assert str(JournalFileBackend(str(tmp_path / "x.journal"))._file_path).endswith("x.journal")
    trial = optuna.trial.create_trial(value=1.0)
    assert isinstance(trial, FrozenTrial)
    assert isinstance(trial._trial_id, int)
    assert issubclass(Database, optuna.storages.RDBStorage)


@pytest.mark.parametrize(
    ("model", "columns"),
    [
        ("TrialModel", {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"}),
        ("TrialParamModel", {"trial_id", "param_name", "param_value", "distribution_json"}),
        ("TrialUserAttributeModel", {"trial_id", "key", "value_json"}),
        ("TrialSystemAttributeModel", {"trial_id", "key", "value_json"}),
        ("TrialValueModel", {"trial_id", "objective", "value", "value_type"}),
        (
            "TrialIntermediateValueModel",
            {"trial_id", "step", "intermediate_value", "intermediate_value_type"},
        ),
        ("StudySystemAttributeModel", {"study_id", "key", "value_json"}),
    ],
)
def test_optunas_tables_have_the_columns_that_we_write(model: str, columns: set[str]) -> None:
    """No more than those and their own key, or a row of ours would lack something."""
    table = getattr(models, model).__table__
    needed = {column.name for column in table.columns if not column.nullable and not column.primary_key}
    assert columns <= {column.name for column in table.columns}
    assert needed <= columns


def test_optunas_values_are_stored_as_we_store_them() -> None:
    assert models.TrialValueModel.value_to_stored_repr(0.5)[0] == 0.5
    assert models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(0.5)[0] == 0.5
