"""Links that open MLflow on a run, a sweep or an experiment, in its view of trainings."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from research.cli import redact
from research.contracts import contract
from research.run_dir import ROOT
from research.tracking.fields import PARENT_TAG, format_best
from research.tracking.storage import UI_HOST, UI_PORT, is_server, resolve_uri

TRAINING = "workflowType=machine_learning"  # a browser that is new to MLflow gets its pages for language-model tools instead
VIEW_TAG = "mlflow.sharedViewState."  # on an experiment, with the key of a view: MLflow's own, which its button "Share" writes


@contract
def get_address(uri: str, port: int = UI_PORT) -> str:
    """Return where MLflow's pages of a store are: the server without what logs in there, else where `make ui` puts them."""
    if not is_server(uri):
        return f"http://{UI_HOST}:{port}"
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def format_experiment_link(address: str, experiment_id: str) -> str:
    """Return the link to the list of an experiment's runs."""
    return f"{address}/#/experiments/{experiment_id}/runs?{TRAINING}"


@contract
def format_run_link(address: str, experiment_id: str, run_id: str) -> str:
    """Return the link to a run's curves."""
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}/model-metrics?{TRAINING}"


def format_sweep_link(address: str, experiment_id: str, parent: str) -> str:
    """Return the link to the comparison of a sweep's runs, in the view that `build_view` has described."""
    return f"{format_experiment_link(address, experiment_id)}&compareRunsMode=CHART&viewStateShareKey={parent}"


@contract
def format_opening(uri: str, link: str) -> str:
    """Return a link with what has to run before it opens."""
    if is_server(uri):
        return link
    words = ["make", *([] if Path.cwd() == ROOT else ["-C", str(ROOT)]), "ui"]
    command = shlex.join(words if uri == resolve_uri() else ["env", f"MLFLOW_TRACKING_URI={redact(uri)}", *words])
    return f"{command}, then {link}"


@contract
def build_view(parent: str, keys: Sequence[str], monitor: str, is_higher_better: bool) -> str:
    """Return how MLflow shows a sweep's runs: the best first, parallel coordinates and bars, then every curve.

    The value of the tag VIEW_TAG, in the format of MLflow's button "Share" (3.17). Charts that are not named, MLflow adds
    itself. `keys` are what was swept.
    """
    best, overview = format_best(monitor), "The sweep"
    charts = [
        {"type": "PARALLEL", "selectedParams": list(keys), "selectedMetrics": [best], "showAllRuns": True},
        {"type": "BAR", "metricKey": best, "displayName": best, "isGenerated": True},
    ]
    common = {"deleted": False, "metricSectionId": overview, "runsCountToCompare": 100}
    view = {
        "searchFilter": f"tags.`{PARENT_TAG}` = '{parent}'",
        "orderByKey": f"metrics.`{best}`",  # sorted by their time MLflow would hide the runs below their parent
        "orderByAsc": not is_higher_better,
        "selectedColumns": [*(f"params.`{key}`" for key in keys), f"metrics.`{best}`", f"metrics.`{monitor}`"],
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [{"uuid": chart["type"], **common, **chart} for chart in charts],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False} for name in (overview, "val", "train")
        ],
        "isAccordionReordered": True,  # else the sections would stand in the order of their names
    }
    return json.dumps(view)


@contract
def share_sweep(client: Any, parent: str, uri: str, monitor: str, is_higher_better: bool) -> str:
    """Log the view of a sweep's runs where there is none. Return the link to it, with what has to run before it opens."""
    run = client.get_run(parent)
    experiment, keys = client.get_experiment(run.info.experiment_id), run.data.tags.get("sweep", "").split(",")
    if VIEW_TAG + parent not in experiment.tags:
        view = build_view(parent, keys, monitor, is_higher_better)
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG + parent, view)
    return format_opening(uri, format_sweep_link(get_address(uri), experiment.experiment_id, parent))


@contract
def describe_newest(client: Any, address: str) -> list[tuple[str, str]]:
    """Return rows of a name and a link: the newest run or sweep, and its experiment."""
    experiments = {experiment.experiment_id: experiment for experiment in client.search_experiments()}
    runs = client.search_runs(list(experiments), order_by=["attributes.start_time DESC"], max_results=1)
    if not runs:
        return [("MLflow", f"{address}/#/experiments?{TRAINING} (no runs yet: make train)")]
    (run,) = runs
    experiment_id, tags = run.info.experiment_id, run.data.tags
    rows = [("MLflow", format_experiment_link(address, experiment_id))]
    sweep = tags.get(PARENT_TAG, run.info.run_id)
    if VIEW_TAG + sweep in experiments[experiment_id].tags:
        return [*rows, ("newest sweep", format_sweep_link(address, experiment_id, sweep))]
    return [*rows, ("newest run", format_run_link(address, experiment_id, run.info.run_id))]
