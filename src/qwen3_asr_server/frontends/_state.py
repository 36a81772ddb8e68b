"""What HTTP front ends may know about the running application.

Made once by `_app`, read by the routers through `app_state`. Holds plain values instead of the settings,
so that no router depends on how the server is configured.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from qwen3_asr_server.frontends._auth import Tickets
from qwen3_asr_server.frontends._bodies import Bodies
from qwen3_asr_server.frontends._upload_policy import UploadPolicies
from qwen3_asr_server.runtime.admission import Admission
from qwen3_asr_server.runtime.gpu import GpuWatch
from qwen3_asr_server.runtime.jobs import Jobs
from qwen3_asr_server.runtime.media import MediaLimits
from qwen3_asr_server.runtime.services import Services
from qwen3_asr_server.runtime.sources import SourceLimits
from qwen3_asr_server.runtime.uploads import Uploads


@dataclass(slots=True)
class AppState:
    """The application as its routers see it."""

    services: Services
    tickets: Tickets
    auth_required: bool
    realtime_paths: Mapping[str, str]
    """Where each wire protocol is served, by its name."""
    source_limits: SourceLimits
    media_limits: MediaLimits
    uploads: Admission
    """Requests whose recordings are stored at once: more than are transcribed, as sending may take long."""
    bodies: Bodies
    """Reads requests without a file, of which the long ones take turns."""
    stored: Uploads
    """Files that clients have sent for requests to come."""
    upload_policies: UploadPolicies
    jobs: Jobs
    limits: Mapping[str, float]
    """The configured limits, by the names of their settings."""
    warnings: tuple[str, ...]
    """What an operator should change before strangers use this server."""
    page_silence_ms: int
    """Silence that ends an utterance on the demo page, unless its user says otherwise."""
    emotion: str = ""
    """What to answer where a protocol wants an emotion; empty leaves it out."""
    gpu: GpuWatch = field(default_factory=GpuWatch.of_this_process)
    failure: str | None = None
    """Why the server cannot work, once that is known."""


def app_state(request: Request) -> AppState:
    """Return the state of the application that serves `request`."""
    state: AppState = request.app.state.asr
    return state


State = Annotated[AppState, Depends(app_state)]
"""What a door takes as a parameter to know the application."""
