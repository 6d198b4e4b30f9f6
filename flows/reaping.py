"""Runs that Prefect takes for running, though whoever ran them is gone."""

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Crashed

_MOST = 200
"""As many runs as the server gives at once; more nights than that are not killed in a row."""


def reap(flow: str) -> int:
    """Mark the runs of `flow` that are said to be running as crashed; return how many.

    Only on a server of this run's own, and under the claim on the model's night: then every run
    that was there before has ended.
    """
    running = FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
    with get_client(sync_client=True) as client:
        left = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=running)),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_MOST,
        )
        for run in left:
            client.set_flow_run_state(run.id, Crashed(message="its process ended"), force=True)
    return len(left)
