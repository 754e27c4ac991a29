"""Pushing dashboards over Grafana's HTTP API: ``/api/folders`` and ``/api/dashboards/db`` (Grafana 12 and 13)."""

from collections.abc import Sequence
from typing import Any

import niquests
from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException

from dashboards.panels import Json

TIMEOUT_S = 15.0
GONE = 404


class PushError(RuntimeError):
    """Grafana cannot be reached or refuses; the text says what to do."""


def push_dashboards(url: str, token: str, folder: tuple[str, str], dashboards: Sequence[Json]) -> dict[str, str]:
    """Put ``dashboards`` into ``folder`` (uid, title), which is made if need be. Returns uid → address.

    What is there under the same uid is replaced. Raises PushError.
    """
    pushed: dict[str, str] = {}
    try:
        grafana: Any = GrafanaApi.from_url(url, credential=token, timeout=TIMEOUT_S)
        _ensure_folder(grafana, *folder)
        for dashboard in dashboards:
            answer = grafana.dashboard.update_dashboard(
                {
                    "dashboard": dashboard,
                    "folderUid": folder[0],
                    "overwrite": True,
                    "message": "python -m dashboards push",
                }
            )
            pushed[answer["uid"]] = url.rstrip("/") + answer["url"]
    except GrafanaClientError as error:
        if error.status_code in (401, 403):
            raise PushError(f"{url}: the token is refused ({error.status_code}); it needs the role Editor") from error
        raise PushError(f"{url}: {error.message}") from error
    except GrafanaException as error:
        raise PushError(f"{url}: Grafana failed with {error.status_code}; see its log") from error
    except (niquests.exceptions.RequestException, OSError, ValueError, KeyError) as error:
        raise PushError(f"{url}: no Grafana answers there ({type(error).__name__}); check the address") from error
    return pushed


def _ensure_folder(grafana: Any, uid: str, title: str) -> None:
    try:
        grafana.folder.get_folder(uid)
    except GrafanaClientError as error:
        if error.status_code != GONE:
            raise
        grafana.folder.create_folder(title, uid)
