"""``/ui/do/NAME``: a page that says what will happen, and has it done when it is confirmed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from litestar import MediaType, Request, Response, get, post
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath

from edge_runtime.errors import ConfigError, CoveyError, as_covey_error
from server.access.pages import page, refused_page
from server.api.actions import ACTIONS, checked
from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.forms import field, read_form, seen_of
from server.api.sign_in_routes import forms_of, stale_form
from server.errors import NoSuchJobError
from server.storage.audit_queries import audit_of, newest_entry

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.access.gate import Access
    from server.api.actions import Action
    from server.queue.operations import Operations

RECENT = 5
"""Entries of the audit that a page shows of its target, where something was refused."""


class _Pages:
    """The pages of one application.

    Args:
        operations: does what is asked.
        access: makes the tokens of forms.
    """

    def __init__(self, operations: Operations, access: Access) -> None:
        self._operations, self._access = operations, access

    def confirming(
        self, request: Request[Any, Any, Any], name: str, target: str, value: str, problem: CoveyError | None = None
    ) -> Response[str]:
        """Return the page that asks; after a refusal with its reason, and with what others did to the target."""
        action, ledger = ACTIONS[name], self._operations.ledger
        body = page(
            "confirm.html.jinja",
            name=name,
            title=action.title.format(target),
            effect=action.effect,
            button=action.button,
            back=action.place(target, is_done=False),
            field=action.field,
            value=value,
            target=target,
            seen=newest_entry(ledger),
            form_token=self._access.forms.token_of(forms_of(request.scope)),
            problem="" if problem is None else problem.what,
            hint="" if problem is None else problem.hint,
            recent=[] if problem is None else audit_of(ledger, RECENT, subject=target),
        )
        return Response(body, status_code=_status(problem), media_type=MediaType.HTML)

    def asked(self, request: Request[Any, Any, Any], name: str) -> Response[str]:
        """Answer who follows a link."""
        target, value = request.query_params.get("target", ""), request.query_params.get("value", "")
        try:
            checked(target, value, _action(name))
        except CoveyError as error:
            return _refused(error)
        return self.confirming(request, name, target, value)

    async def confirmed(self, request: Request[Any, Any, Any], name: str, asker: AskedBy) -> Response[str]:
        """Do what a form asks for."""
        try:
            form = await read_form(request)
            target, value, seen = field(form, "target"), field(form, "value").strip(), seen_of(form)
            action = _action(name)
            checked(target, value, action)
            if action.field and not value:
                raise ConfigError(f"{action.field} is empty", "write one")
        except CoveyError as error:
            return _refused(error)
        is_own = self._access.forms.is_valid(forms_of(request.scope), field(form, "form_token"))
        if not is_own or seen is None:
            return stale_form()

        def done() -> Response[str]:
            try:
                action.do(self._operations, target, value, replace(asker, seen=seen))
            except Exception as error:  # noqa: BLE001 shown on the page, with the form as it was
                return self.confirming(request, name, target, value, as_covey_error(error))
            place = action.place(target, is_done=True)
            return Response("", status_code=303, headers={"location": place}, media_type=MediaType.HTML)

        return await sync_to_thread(done)


def action_routes(operations: Operations, access: Access) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is asked.
        access: makes the tokens of forms.
    """
    pages = _Pages(operations, access)

    @get("/ui/do/{name:str}", include_in_schema=False)
    async def confirm(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[str]:
        return await sync_to_thread(pages.asked, request, name)

    @post("/ui/do/{name:str}", include_in_schema=False, status_code=303)
    async def do(request: Request[Any, Any, Any], name: FromPath[str], asker: AskedBy) -> Response[str]:
        return await pages.confirmed(request, name, asker)

    return [confirm, do]


def _action(name: str) -> Action:
    found = ACTIONS.get(name)
    if found is None:
        raise ConfigError("there is no such action", "begin at a page of Covey's own")
    return found


def _status(problem: CoveyError | None) -> int:
    if problem is None:
        return 200
    return 404 if isinstance(problem, NoSuchJobError) else 409


def _refused(error: CoveyError) -> Response[str]:
    return Response(refused_page(error), status_code=422, media_type=MediaType.HTML)
