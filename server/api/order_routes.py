"""``/ui/new/NAME``: a form, a page that says what will happen, and what follows when it is confirmed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from litestar import MediaType, Request, Response, get, post
from litestar.concurrency import sync_to_thread
from litestar.params import FromPath

from edge_runtime.errors import ConfigError, CoveyError, as_covey_error
from server.access.pages import page, refused_page
from server.api.action_routes import RECENT
from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.forms import field, read_form, seen_of
from server.api.job_order import NewJob
from server.api.rollout_order import NewRollout
from server.api.sign_in_routes import forms_of, stale_form
from server.api.statuses import status_of
from server.api.token_order import NewTokens
from server.errors import ChangedError
from server.storage.audit_queries import audit_of, newest_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litestar.handlers import HTTPRouteHandler

    from server.access.gate import Access
    from server.api.orders import Field, Order, Prospect
    from server.queue.operations import Operations
    from server.storage.audit_records import Asker

_LARGEST_BYTES = 256 * 1024
"""Of a form: a job.toml of the largest length, in which each character is written as %XX."""
_EDIT, _CONFIRM = "edit", "confirm"
"""What a form is sent for; otherwise for the page that says what will happen."""
ORDERS: dict[str, Callable[[Operations], Order]] = {"rollout": NewRollout, "tokens": NewTokens, "job": NewJob}
"""By the name in the page's address."""


@dataclass(frozen=True)
class _Asked:
    """What one request asks for.

    Attributes:
        name: of the order.
        order: the order.
        fields: of its form.
        given: what was written, by the field's name.
        forms: for whom forms are made.
    """

    name: str
    order: Order
    fields: list[Field]
    given: dict[str, str]
    forms: str


class _Pages:
    """The pages of one application.

    Args:
        operations: does what is ordered.
        access: makes the tokens of forms.
    """

    def __init__(self, operations: Operations, access: Access) -> None:
        self._ledger, self._access = operations.ledger, access
        self._orders: dict[str, Order] = {name: kind(operations) for name, kind in ORDERS.items()}

    def begun(self, request: Request[Any, Any, Any], name: str) -> Response[str]:
        """Answer who follows a link: the form, with what the link's query fills in."""
        try:
            asked = self._asked(request, name, request.query_params)
            for one in asked.fields:
                if one.name in request.query_params and asked.given[one.name]:
                    one.check(asked.given[one.name])
        except CoveyError as error:
            return _page(refused_page(error), status_of(error))
        return self._form(asked)

    async def sent(self, request: Request[Any, Any, Any], name: str, asker: AskedBy) -> Response[str]:
        """Answer a form."""
        try:
            form = await read_form(request, _LARGEST_BYTES)
        except CoveyError as error:
            return _page(refused_page(error), status_of(error))
        if not self._access.forms.is_valid(forms_of(request.scope), field(form, "form_token")):
            return stale_form()
        return await sync_to_thread(self._answer, request, name, form, asker)

    def _answer(
        self, request: Request[Any, Any, Any], name: str, form: dict[str, str], asker: AskedBy
    ) -> Response[str]:
        step = field(form, "step")
        try:
            asked = self._asked(request, name, form, is_sent=True)
        except CoveyError as error:
            return _page(refused_page(error), status_of(error))
        try:
            for one in asked.fields:
                one.check(asked.given[one.name])
            prospect = asked.order.look(asked.given)
        except Exception as error:  # noqa: BLE001 shown on the form, with what was written
            return self._form(asked, None if step == _EDIT else as_covey_error(error))
        if step == _EDIT:
            return self._form(asked)
        if step == _CONFIRM:
            return self._confirmed(asked, prospect, form, asker)
        return self._confirming(asked, prospect)

    def _confirmed(self, asked: _Asked, prospect: Prospect, form: dict[str, str], asker: Asker) -> Response[str]:
        """Have done what was confirmed, where it is still what the page has shown."""
        seen = seen_of(form)
        if seen is None:
            return stale_form()
        if field(form, "shown") != _digest(prospect):
            changed = ChangedError("what will happen has changed since you looked", "read it again, and decide anew")
            return self._confirming(asked, prospect, changed)
        try:
            outcome = asked.order.do(asked.given, replace(asker, seen=seen))
        except Exception as error:  # noqa: BLE001 shown on the page, which asks again
            return self._confirming(asked, prospect, as_covey_error(error))
        if outcome.place:
            return Response("", status_code=303, headers={"location": outcome.place}, media_type=MediaType.HTML)
        return _page(page("secrets.html.jinja", back=asked.order.back, secrets=outcome.secrets), 200)

    def _asked(
        self, request: Request[Any, Any, Any], name: str, given: Mapping[str, str], *, is_sent: bool = False
    ) -> _Asked:
        order = self._orders.get(name)
        if order is None:
            raise ConfigError("there is no such form", "begin at a page of Covey's own")
        fields = order.fields()
        words = {one.name: given.get(one.name, "" if is_sent else one.value) for one in fields}
        words = {one.name: words[one.name] if one.kind == "text" else words[one.name].strip() for one in fields}
        return _Asked(name, order, fields, words, forms_of(request.scope))

    def _form(self, asked: _Asked, problem: CoveyError | None = None) -> Response[str]:
        """Return the form; after a refusal with its reason."""
        body = page("order.html.jinja", **self._shared(asked, problem))
        return _page(body, 200 if problem is None else status_of(problem))

    def _confirming(self, asked: _Asked, prospect: Prospect, problem: CoveyError | None = None) -> Response[str]:
        """Return the page that asks; after a refusal with its reason, and with what others did to the same thing."""
        body = page(
            "order_confirm.html.jinja",
            prospect=prospect,
            shown=_digest(prospect),
            seen=newest_entry(self._ledger),
            recent=[] if problem is None else audit_of(self._ledger, RECENT, subject=prospect.subject),
            **self._shared(asked, problem),
        )
        return _page(body, 200 if problem is None else status_of(problem))

    def _shared(self, asked: _Asked, problem: CoveyError | None) -> dict[str, Any]:
        return {
            "name": asked.name,
            "order": asked.order,
            "fields": asked.fields,
            "given": asked.given,
            "form_token": self._access.forms.token_of(asked.forms),
            "problem": "" if problem is None else problem.what,
            "hint": "" if problem is None else problem.hint,
        }


def order_routes(operations: Operations, access: Access) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is ordered.
        access: makes the tokens of forms.
    """
    pages = _Pages(operations, access)

    @get("/ui/new/{name:str}", include_in_schema=False)
    async def form(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[str]:
        return await sync_to_thread(pages.begun, request, name)

    @post("/ui/new/{name:str}", include_in_schema=False, status_code=200)
    async def send(request: Request[Any, Any, Any], name: FromPath[str], asker: AskedBy) -> Response[str]:
        return await pages.sent(request, name, asker)

    return [form, send]


def _digest(prospect: Prospect) -> str:
    """Return a hash of what a page says will happen."""
    return hashlib.sha256("\n".join(prospect.effects).encode()).hexdigest()


def _page(body: str, status: int) -> Response[str]:
    return Response(body, status_code=status, media_type=MediaType.HTML)
