"""`POST /api/tickets`: a one-use pass for a browser, which cannot set headers on a WebSocket.

Whoever holds a key asks for a ticket and opens the socket with `?ticket=…` instead of the key. The key
itself was checked before the request came here (`_auth`).
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from qwen3_asr_server.frontends._state import State

router = APIRouter(tags=["realtime"])


@router.post("/api/tickets", status_code=201)
async def issue_ticket(request: Request, state: State) -> JSONResponse:
    """Hand out a ticket that opens one WebSocket within `expires_in_s` seconds.

    Needs `Authorization: Bearer <key>` when the server has keys. Without keys it works too, so that a page need not
    know which it is.
    """
    body: dict[str, Any] = {
        "ticket": state.tickets.issue(request.state.key_id),
        "expires_in_s": state.tickets.ttl_s,
    }
    return JSONResponse(body, status_code=201, headers={"Cache-Control": "no-store"})
