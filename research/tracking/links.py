"""Links that open MLflow on a run, a sweep or an experiment, in its view of trainings."""

from urllib.parse import urlsplit

HOST, PORT = "127.0.0.1", 5000  # of make ui
TRAINING = "workflowType=machine_learning"  # a browser that is new to MLflow gets its pages for language-model tools instead
VIEW_TAG = "mlflow.sharedViewState."  # on an experiment, with the key of a view: MLflow's own, which its button "Share" writes


def get_address(uri: str, port: int = PORT) -> str:
    """Return where MLflow's pages of a store are: the server without what logs in there, else where `make ui` puts them."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return f"http://{HOST}:{port}"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def format_experiments_link(address: str) -> str:
    return f"{address}/#/experiments?{TRAINING}"


def format_experiment_link(address: str, experiment_id: str) -> str:
    return f"{address}/#/experiments/{experiment_id}/runs?{TRAINING}"


def format_run_link(address: str, experiment_id: str, run_id: str) -> str:
    """Return the link to a run's curves."""
    return f"{address}/#/experiments/{experiment_id}/runs/{run_id}/model-metrics?{TRAINING}"


def format_sweep_link(address: str, experiment_id: str, parent: str) -> str:
    """Return the link to the comparison of a sweep's runs, in the view that `build_view` has described."""
    return f"{format_experiment_link(address, experiment_id)}&compareRunsMode=CHART&viewStateShareKey={parent}"


def describe_place(uri: str, link: str) -> str:
    """Return a link with what has to run before it opens."""
    return link if urlsplit(uri).scheme in ("http", "https") else f"make ui, then {link}"
