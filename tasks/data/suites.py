"""Runs suites of expectations in an ephemeral context of Great Expectations.

Importing this module imports Great Expectations, which takes seconds.
"""

from collections.abc import Sequence
from typing import Any

import great_expectations as gx
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

from tasks.data.expectations import Suite

RULE = "rule"
"""Where an expectation's meta data says which rule of its suite it is."""


def examine(suites: Sequence[Suite]) -> list[Any]:
    """Return each suite's `ExpectationSuiteValidationResult`.

    The context lives in memory: it writes no file, prints nothing, and reports to nobody.
    """
    settings = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        analytics_enabled=False,
    )
    context = gx.get_context(mode="ephemeral", project_config=settings)
    source = context.data_sources.add_pandas("prepared data")
    asset = source.add_dataframe_asset("tonight")
    batches = asset.add_batch_definition_whole_dataframe("whole")
    return [_run(batches, suite) for suite in suites]


def _run(batches: Any, suite: Suite) -> Any:
    expectations = []
    for number, rule in enumerate(suite.rules):
        rule.expectation.meta = {RULE: number}  # results come in another order
        expectations.append(rule.expectation)
    # SUMMARY names the first 20 rows; COMPLETE would carry all of them
    return batches.get_batch({"dataframe": suite.frame}).validate(
        gx.ExpectationSuite(name=suite.name, expectations=expectations), result_format="SUMMARY"
    )
