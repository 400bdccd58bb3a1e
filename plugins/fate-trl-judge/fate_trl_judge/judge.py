"""The verifier: asks a served model about each trajectory, some at a time, several times where votes are wanted."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from fate_trl import (
    OBJECTIVES,
    EndpointError,
    Message,
    RecipeError,
    Reply,
    Score,
    Server,
    Trajectory,
    check_url,
    combined,
    reducer,
    text_of,
)

from .prompt import messages, one_word
from .rubrics import Rubric, rubrics_of
from .verdict import YES_NO, NoVerdict, Scale, answer_type, parse, parse_word

_REFUSED = (400, 422)  # what servers answer to a response_format that they don't know

NonNegative = Annotated[float, Field(ge=0)]


class Judge:
    """A served model that judges any objective by a rubric. All objectives of a trajectory are one request.

    A server that gives no answer makes an error score, and so does an answer that is no verdict; neither is ever a 0.
    With several votes, more than half of them must be verdicts, and `Score.spread` says how far they disagree.

    Args:
        url: What stands before /chat/completions, such as http://127.0.0.1:8000/v1.
        model: The judge's name at the server.
        objectives: What it scores.
        rubrics: By objective what a trajectory that passes looks like: one text, or one for each kind of task that the
            objective applies to. The four objectives have rubrics already.
        scale: `yes-no`, or the highest of the whole numbers from 0 that the judge answers with (n means n / scale).
        answer: `json`, or `word` for a judge too weak for that: a request for each objective, answered by yes or no
            alone. Then there is no reason, step or feedback, and no key that an answer must repeat.
        votes: Answers for each trajectory.
        reduce: What makes one score of them: their `mean`, or `majority` (1 if more than half give at least 0.5).
        temperature: Of sampling.
        max_tokens: Of one answer, a model's thoughts included.
        longest: Characters of one message, call or result that are shown to the judge.
        concurrency: Requests at a time.
        seconds: Time for one reply.
        retries: Of a request after 408, 409, 425, 429, 5xx, silence or a broken reply.
        backoff: Seconds before the first retry, doubled with each; the server's Retry-After goes before it.
        body: More keys of every request; null takes out one of ours (temperature, max_tokens, seed).
        key_env: The environment variable with the API key, which is never recorded; unset for a server without keys.
        prompt_price: Of a million tokens that are sent, in any currency.
        completion_price: Of a million tokens that come back.

    Raises:
        RecipeError: An objective without a rubric, votes that cannot differ, a URL or a key that cannot work.
    """

    cached = True

    def __init__(
        self,
        url: str,
        model: str,
        objectives: list[str] = list(OBJECTIVES),  # noqa: B006
        rubrics: dict[str, str | Rubric] = {},  # noqa: B006
        scale: Scale = YES_NO,
        answer: Literal["json", "word"] = "json",
        votes: Annotated[int, Field(ge=1, le=64)] = 1,
        reduce: Literal["mean", "majority"] = "mean",
        temperature: NonNegative = 0.0,
        max_tokens: Annotated[int, Field(ge=1)] = 1024,
        longest: Annotated[int, Field(ge=100)] = 8000,
        concurrency: Annotated[int, Field(ge=1, le=256)] = 8,
        seconds: Annotated[float, Field(gt=0)] = 60.0,
        retries: Annotated[int, Field(ge=0)] = 4,
        backoff: NonNegative = 1.0,
        body: dict[str, Any] = {},  # noqa: B006
        key_env: str = "OPENAI_API_KEY",
        prompt_price: NonNegative = 0.0,
        completion_price: NonNegative = 0.0,
    ):
        check_url("judge: url", url, key_env)
        if scale != YES_NO and not 1 <= scale <= 100:
            raise RecipeError(f"judge: scale is yes-no or a whole number from 1 to 100, not {scale}.")
        if votes > 1 and temperature == 0:
            raise RecipeError(f"judge: {votes} votes at temperature 0 are one vote; set a temperature above 0.")
        if answer == "word" and scale != YES_NO:
            raise RecipeError(f"judge: with answer: word the scale is {YES_NO}, not {scale}.")
        self.objectives = tuple(objectives)
        self.votes, self.scale, self.answer, self.longest = votes, scale, answer, longest
        self._rubrics = rubrics_of(objectives, rubrics)
        self._body = {"model": model, "temperature": temperature, "max_tokens": max_tokens, **body}
        self._reduce = reducer(reduce)
        self._server = Server(url, key_env, seconds, retries, backoff)
        self._pool = ThreadPoolExecutor(concurrency, "fate-trl-judge")
        self._structured = True
        self._prices = prompt_price / 1e6, completion_price / 1e6
        self._spent: Counter[str] = Counter()
        self._counting = threading.Lock()

    async def score_one(self, trajectory: Trajectory) -> dict[str, Score]:
        """A score for each objective; see hookspecs.Verifier."""
        kind = trajectory.task.kind
        rubrics = {name: rubric[kind] for name, rubric in self._rubrics.items() if kind in rubric}
        none = Score.not_applicable(f"it has no rubric for {kind} tasks")
        votes = await self._vote(trajectory, rubrics) if rubrics else []
        return {
            name: self._counted([vote[name] for vote in votes]) if name in rubrics else none for name in self.objectives
        }

    async def _vote(self, trajectory: Trajectory, rubrics: Mapping[str, str]) -> list[dict[str, Score]]:
        """Every vote's scores. If time is over before they are there, no vote is asked for again."""
        loop, stopped = asyncio.get_running_loop(), threading.Event()
        asking = (
            loop.run_in_executor(self._pool, self._ask_for_scores, trajectory, rubrics, number, stopped)
            for number in range(self.votes)
        )
        try:
            return list(await asyncio.gather(*asking))
        finally:
            stopped.set()

    def _counted(self, votes: list[Score]) -> Score:
        return votes[0] if self.votes == 1 else combined(votes, self._reduce, self.votes // 2 + 1)

    def _ask_for_scores(
        self, trajectory: Trajectory, rubrics: Mapping[str, str], number: int, stopped: threading.Event
    ) -> dict[str, Score]:
        """One vote; an error score for each objective if there is none."""
        if self.answer == "word":
            return {name: self._word(trajectory, rubric, number, stopped) for name, rubric in rubrics.items()}
        key = secrets.token_hex(4)  # nobody who wrote into the trajectory can know it
        form = answer_form(tuple(rubrics), self.scale)
        prompt = messages(trajectory, rubrics, self.scale, key, self.longest)
        try:
            text = self._answer(prompt, number, form, stopped)
            return parse(text, key, form, self.scale, trajectory)
        except (EndpointError, NoVerdict) as error:
            return dict.fromkeys(rubrics, _error(error))

    def _word(self, trajectory: Trajectory, rubric: str, number: int, stopped: threading.Event) -> Score:
        """One vote on one objective, where a word is the answer."""
        try:
            return parse_word(self._answer(one_word(trajectory, rubric, self.longest), number, None, stopped))
        except (EndpointError, NoVerdict) as error:
            return _error(error)

    def _answer(
        self, prompt: list[Message], number: int, form: TypeAdapter[Any] | None, stopped: threading.Event
    ) -> str:
        """What the model wrote. Raises NoVerdict if it is cut off, and EndpointError."""
        reply = self._ask({"messages": prompt, "seed": number, **self._body}, form, stopped)
        if reply.cut:
            raise NoVerdict("the answer was cut off at the limit on tokens")
        return text_of(reply.message)

    def _ask(self, body: Mapping[str, Any], form: TypeAdapter[Any] | None, stopped: threading.Event) -> Reply:
        """The reply; held to the form by the server, as long as it can do that."""
        body = {key: value for key, value in body.items() if value is not None}
        if form is not None and self._structured:
            try:
                return self._count(self._server.ask({**body, "response_format": _response_format(form)}, stopped))
            except EndpointError as error:
                if error.status not in _REFUSED or error.cause != "endpoint_status":
                    raise
        reply = self._server.ask(body, stopped)  # a 400 that is about something else comes again, and is raised
        self._structured = self._structured and form is None
        return self._count(reply)

    # -------------------------------------------------------------------------------------------- what it costs

    def _count(self, reply: Reply) -> Reply:
        cost = reply.prompt * self._prices[0] + reply.written * self._prices[1]
        spent = {"requests": 1, "prompt_tokens": reply.prompt, "completion_tokens": reply.written}
        with self._counting:
            self._spent.update({**spent, "cost": cost} if any(self._prices) else spent)
        return reply

    def usage(self) -> dict[str, float]:
        """Requests, tokens and their price since this was asked last."""
        with self._counting:
            spent, self._spent = self._spent, Counter()
        return dict(spent)


def _error(error: EndpointError | NoVerdict) -> Score:
    return Score.error(f"judge: {error}", error.cause if isinstance(error, EndpointError) else "no_verdict")


@cache
def answer_form(objectives: tuple[str, ...], scale: Scale) -> TypeAdapter[Any]:
    """`answer_type`, made once."""
    return answer_type(objectives, scale)


def _response_format(form: TypeAdapter[Any]) -> dict[str, Any]:
    """The form as servers want it described. The key is no part of it: they compile each schema that they meet."""
    return {"type": "json_schema", "json_schema": {"name": "verdicts", "strict": True, "schema": form.json_schema()}}
