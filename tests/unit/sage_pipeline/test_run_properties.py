"""The run state machine: on any graph and in any order of completions, every promise of a run holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_core import BadRequest, Cancelled, DeadlineExceeded, Overloaded, SageError, WorkerLost
from sage_pipeline import Placement, Plan, Step
from sage_pipeline.compiler import with_critical_path
from sage_pipeline.nodes import SourceOptions
from sage_pipeline.run import (
    Begin,
    CancelNode,
    Command,
    DeadlineReached,
    Fail,
    Forward,
    NodeDone,
    NodeFailed,
    NodeFinished,
    NodeStreamed,
    PipelineRun,
    RunCancelled,
    RunEvent,
    StartNode,
    Succeed,
)
from sage_pipeline.values import Answer, EdgeType
from sage_wire.messages import Tokens


def graph(edges: list[list[int]], *, estimates: list[float] | None = None, idempotent: bool = True) -> Plan:
    """Make a plan in which node i reads `edges[i]`; the last node is the output and streams."""
    steps = tuple(
        Step(
            id=f"n{number}",
            type="chat",
            options=SourceOptions(),
            inputs={f"port{source}": f"n{source}" for source in sources},
            yields=EdgeType.ANSWER,
            placement=Placement.PLANNER,
            task="",
            pool="",
            estimate_s=estimates[number] if estimates is not None else 1.0,
            is_streamed=number == len(edges) - 1,
            is_idempotent=idempotent,
        )
        for number, sources in enumerate(edges)
    )
    plan = Plan("random", "", EdgeType.MESSAGES, steps[-1].id, {}, steps, (), 0.0)
    return with_critical_path(plan)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw any directed acyclic graph of up to 12 nodes."""
    size = draw(st.integers(1, 12))
    edges = [
        sorted(draw(st.sets(st.integers(0, node - 1), max_size=4))) if node else [] for node in range(size)
    ]
    return graph(edges, estimates=[draw(st.floats(0, 10)) for _ in range(size)])


class Executor:
    """Obeys commands as a driver would and checks what must hold at every step."""

    def __init__(self, plan: Plan, *, deadline: float = 1e9) -> None:
        self.plan = plan
        self.run = PipelineRun(plan, deadline=deadline)
        self.now = 0.0
        self.running: dict[str, StartNode] = {}
        self.started: list[str] = []
        self.done: list[str] = []
        self.forwarded: list[str] = []
        self.end: Command | None = None

    def send(self, event: RunEvent) -> None:
        is_over = self.end is not None
        commands = self.run.handle(event, self.now)
        assert not (is_over and commands), "a run that has ended asks for something"
        for command in commands:
            assert self.end is None, "Succeed or Fail is the last command"
            match command:
                case StartNode(node_id=node_id, inputs=inputs):
                    step = self.plan.step(node_id)
                    assert node_id not in self.running
                    assert set(step.inputs.values()) <= set(self.done), "a node starts after its inputs"
                    assert set(inputs) == set(step.inputs)
                    for port, source in step.inputs.items():
                        assert inputs[port] == Answer(source), "a node gets its own inputs' values"
                    assert 0 <= command.budget_s <= self.run._deadline - self.now
                    self.running[node_id] = command
                    self.started.append(node_id)
                case CancelNode(node_id=node_id, attempt=attempt):
                    assert self.running.pop(node_id).attempt == attempt
                case NodeDone(node_id=node_id, num_done=num_done):
                    self.done.append(node_id)
                    assert num_done == len(self.done)
                case Forward(tokens):
                    self.forwarded.append(tokens.text)
                case Succeed() | Fail():
                    self.end = command

    def finish(self, node_id: str) -> NodeFinished:
        event = NodeFinished(node_id, self.running.pop(node_id).attempt, Answer(node_id))
        self.send(event)
        return event

    def fail(self, node_id: str, error: SageError) -> None:
        self.send(NodeFailed(node_id, self.running.pop(node_id).attempt, error))


@settings(max_examples=120, deadline=None)
@given(plans(), st.data())
def test_any_order_of_completions_runs_every_node_exactly_once(plan: Plan, data: st.DataObject) -> None:
    executor = Executor(plan)
    executor.send(Begin())
    while executor.running:
        late = executor.finish(data.draw(st.sampled_from(sorted(executor.running))))
        if data.draw(st.booleans()):
            executor.send(late)  # a completion that arrives twice changes nothing
    assert sorted(executor.started) == sorted(step.id for step in plan.steps)
    assert executor.end == Succeed(Answer(plan.output))
    assert executor.run.is_finished


@settings(max_examples=120, deadline=None)
@given(plans(), st.data())
def test_every_ready_node_runs_at_once(plan: Plan, data: st.DataObject) -> None:
    executor = Executor(plan)
    executor.send(Begin())
    while executor.running:
        ready = {
            step.id
            for step in plan.steps
            if step.id not in executor.done and set(step.inputs.values()) <= set(executor.done)
        }
        assert set(executor.running) == ready
        executor.finish(data.draw(st.sampled_from(sorted(executor.running))))


ERRORS = st.sampled_from([Overloaded("full"), WorkerLost("gone"), BadRequest("wrong")])


@settings(max_examples=120, deadline=None)
@given(plans(), st.data())
def test_whatever_happens_a_run_ends_and_starts_nothing_after(plan: Plan, data: st.DataObject) -> None:
    executor = Executor(plan, deadline=data.draw(st.floats(1, 100)))
    executor.send(Begin())
    num_steps = 0
    while executor.end is None:
        num_steps += 1
        assert num_steps <= 3 * len(plan.steps) + 1, "attempts are bounded, so a run always terminates"
        executor.now += data.draw(st.floats(0, 5))
        if executor.now >= executor.run._deadline:
            executor.send(DeadlineReached())
            break
        action = data.draw(st.sampled_from(["finish", "finish", "finish", "fail", "cancel"]))
        if action == "cancel":
            executor.send(RunCancelled())
            break
        node_id = data.draw(st.sampled_from(sorted(executor.running)))
        if action == "finish":
            executor.finish(node_id)
        else:
            executor.fail(node_id, data.draw(ERRORS))
    assert isinstance(executor.end, Succeed | Fail)
    assert not executor.running, "what ran is cancelled with the run"
    num_started = len(executor.started)
    late: list[RunEvent] = [
        *(NodeFinished(step.id, attempt, Answer(step.id)) for step in plan.steps for attempt in (1, 2, 3)),
        NodeFailed(plan.output, 1, Overloaded("late")),
        RunCancelled(),
        DeadlineReached(),
        Begin(),
    ]
    for event in late:
        executor.send(event)
    assert len(executor.started) == num_started


@settings(max_examples=120, deadline=None)
@given(plans(), st.floats(0.01, 1000))
def test_a_node_leaves_time_for_those_behind_it_and_never_less_than_half(plan: Plan, deadline: float) -> None:
    executor = Executor(plan, deadline=deadline)
    executor.send(Begin())
    for node_id, command in executor.running.items():
        step = plan.step(node_id)
        assert command.budget_s >= deadline / 2 - 1e-9
        assert command.budget_s >= deadline * step.share - 1e-9 or step.share == 0
        if not plan.consumers(node_id):
            assert command.budget_s == pytest.approx(deadline)


DIAMOND = [[], [0], [0], [1, 2]]


def test_the_first_failure_cancels_the_rest_and_names_its_node() -> None:
    executor = Executor(graph(DIAMOND))
    executor.send(Begin())
    executor.finish("n0")
    assert set(executor.running) == {"n1", "n2"}
    executor.fail("n1", BadRequest("too long", param="messages"))
    assert not executor.running
    assert isinstance(executor.end, Fail)
    error = executor.end.error
    assert (type(error), error.message, error.param) == (BadRequest, "node 'n1': too long", "messages")


def test_a_retryable_failure_is_tried_again_after_the_time_it_asks_for() -> None:
    executor = Executor(graph([[], [0]]), deadline=60)
    executor.send(Begin())
    executor.finish("n0")
    executor.fail("n1", Overloaded("full", retry_after=2.5))
    again = executor.running["n1"]
    assert (again.attempt, again.delay_s) == (2, 2.5)
    executor.fail("n1", WorkerLost("gone"))
    assert executor.running["n1"].attempt == 3
    assert 0.2 <= executor.running["n1"].delay_s <= 0.4
    executor.fail("n1", WorkerLost("gone"))
    assert isinstance(executor.end, Fail)
    assert isinstance(executor.end.error, WorkerLost)


def test_what_is_not_idempotent_is_not_tried_again() -> None:
    executor = Executor(graph([[]], idempotent=False))
    executor.send(Begin())
    executor.fail("n0", WorkerLost("gone"))
    assert isinstance(executor.end, Fail)


def test_nothing_is_tried_again_past_the_deadline() -> None:
    executor = Executor(graph([[]]), deadline=2)
    executor.send(Begin())
    executor.fail("n0", Overloaded("full", retry_after=5))
    assert isinstance(executor.end, Fail)
    assert isinstance(executor.end.error, Overloaded)


def test_text_of_the_output_alone_is_forwarded_and_makes_its_node_final() -> None:
    executor = Executor(graph([[], [0]]))
    executor.send(Begin())
    executor.send(NodeStreamed("n0", 1, Tokens(text="draft")))
    executor.finish("n0")
    executor.send(NodeStreamed("n1", 1, Tokens(text="Hel")))
    executor.send(NodeStreamed("n1", 1, Tokens(text="lo")))
    assert executor.forwarded == ["Hel", "lo"]
    executor.fail("n1", WorkerLost("gone"))
    assert isinstance(executor.end, Fail), "text that was shown cannot be taken back by another attempt"


def test_events_of_an_attempt_that_was_given_up_are_ignored() -> None:
    executor = Executor(graph([[], [0]]))
    executor.send(Begin())
    executor.finish("n0")
    executor.fail("n1", WorkerLost("gone"))
    executor.send(NodeStreamed("n1", 1, Tokens(text="late")))
    executor.send(NodeFinished("n1", 1, Answer("late")))
    assert executor.forwarded == []
    assert executor.end is None
    executor.finish("n1")
    assert executor.end == Succeed(Answer("n1"))


def test_cancel_and_deadline_say_what_they_are() -> None:
    executor = Executor(graph([[], [0]]))
    executor.send(Begin())
    executor.send(RunCancelled("the client left"))
    assert isinstance(executor.end, Fail)
    assert isinstance(executor.end.error, Cancelled)
    executor = Executor(graph([[], [0]]))
    executor.send(Begin())
    executor.finish("n0")
    executor.send(DeadlineReached())
    assert isinstance(executor.end, Fail)
    assert isinstance(executor.end.error, DeadlineExceeded)
    assert executor.end.error.message == "pipeline 'random' ran out of its budget; not finished: n1"


def test_values_are_dropped_once_their_last_reader_is_done() -> None:
    executor = Executor(graph([[], [0], [1]]))
    executor.send(Begin())
    executor.finish("n0")
    assert set(executor.run._values) == {"n0"}
    executor.finish("n1")
    assert set(executor.run._values) == {"n1"}
