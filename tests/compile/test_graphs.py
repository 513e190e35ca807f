"""Attached models compile in one graph, and train as they do without: all nets, all mechanisms."""

from pathlib import Path

import pytest
import torch
from compiling import QUIET, ROWS, Counter, allowed, compiled, difference, eager, in_graph, trained
from nets import NETS
from subjects import EXAMPLES, build
from table import FOR_LARGE, MARKERS, expected_graph, graph_table, is_tested

import bouton

pytestmark = QUIET

PAGE = Path(__file__).parents[2] / "docs" / "what-is-tested.md"
CELLS = [(net, row) for net in NETS for row in ROWS if is_tested(net, row)]


def test_the_table_of_the_docs_is_that_of_the_tests():
    table = PAGE.read_text().partition(MARKERS[0])[2].partition(MARKERS[1])[0]
    assert table.strip() == graph_table()
    assert set(ROWS) >= FOR_LARGE


@pytest.mark.parametrize(("net", "row"), CELLS)
def test_compiled_training_equals_eager_training(net, row):
    found, plain = compiled(net, row, "aot_eager"), compiled(net, "plain", "aot_eager")
    assert found.graph == expected_graph(net, row)
    assert found.difference <= allowed(net, "aot_eager")
    assert found.late == 0
    if found.graph == "one graph":
        assert found.graphs == plain.graphs
    if row != "plain":
        weights = dict(build(net)[0].named_parameters())
        assert any(not torch.equal(eager(net, row)[name], eager(net, "plain")[name]) for name in weights)


@pytest.mark.parametrize("name", [n for n, m in EXAMPLES.items() if not in_graph(m)])
def test_mechanisms_of_the_step_leave_the_graph_alone(name):
    mechanism = EXAMPLES[name]
    found = trained("mlp", [mechanism], "aot_eager", steps=4)
    assert difference(found.values, trained("mlp", [mechanism], steps=4).values) == 0
    assert (found.graphs, found.late) == (1, 0)


@pytest.mark.parametrize("row", ["plain", "all at once"])
def test_twenty_steps_with_evaluations_compile_each_graph_once(row):
    counts = {}
    for own in ("plain", row):
        torch.compiler.reset()
        model, optimizer = build("mlp", "adamw")
        if ROWS[own]:
            bouton.attach(model, optimizer, ROWS[own])
        counter = Counter()
        call = torch.compile(model, backend=counter, fullgraph=True)
        counts[own] = []
        for step in range(20):
            x = torch.randn(8, 36, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            call(x).square().mean().backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                call(x)
            model.train()
            counts[own].append(counter.graphs)
    assert counts["plain"] == [2] * 20
    assert counts[row] == counts["plain"]


@pytest.mark.parametrize("row", ["Grapes()", "FeedbackAlignment(kind='dfa')", "all at once"])
def test_batches_of_changing_size(row):
    results, sizes, first = [], (8, 5, 3, 7, 2, 8), 0
    for compile_it in (False, True):
        torch.compiler.reset()
        model, optimizer = build("mlp")
        bouton.attach(model, optimizer, ROWS[row])
        counter, call = Counter(), model
        if compile_it:
            whole = expected_graph("mlp", row) == "one graph"
            call = torch.compile(model, backend=counter, fullgraph=whole, dynamic=True)
        for step, size in enumerate(sizes):
            x = torch.randn(size, 36, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            call(x).square().sum().backward()
            optimizer.step()
            first = counter.graphs if step == 0 else first
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    assert difference(*results) <= allowed("mlp", "aot_eager")
    assert first == counter.graphs > 0 or not whole


@pytest.mark.parametrize("row", ["Grapes()", "all at once"])
def test_autocast(row):
    results = []
    for compile_it in (False, True):
        torch.compiler.reset()
        model, optimizer = build("mlp")
        bouton.attach(model, optimizer, ROWS[row])
        call = torch.compile(model, backend="aot_eager", fullgraph=True) if compile_it else model
        for step in range(3):
            x = torch.randn(8, 36, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = call(x).float().square().mean()
            loss.backward()
            optimizer.step()
        results.append({name: value.clone() for name, value in model.state_dict().items()})
    # the graph rounds to 16 bits in other places
    assert difference(*results) <= 4 * torch.finfo(torch.bfloat16).eps


def test_feedback_of_a_function_must_be_made_before():
    def init(path, shape, generator):
        return torch.randn(shape, generator=generator)

    torch.compiler.reset()
    model, _ = build("mlp")
    bouton.attach(model, None, [bouton.FeedbackAlignment(init=init)])
    call, x = torch.compile(model, backend="aot_eager", fullgraph=True), torch.randn(8, 36)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="run one forward and backward pass"):
        call(x)
    model(x).sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    call(x).sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_direct_feedback_in_one_graph_is_refused_by_name():
    torch.compiler.reset()
    model, _ = build("mlp")
    bouton.attach(model, None, [bouton.FeedbackAlignment(kind="dfa")])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="kind='dfa' and 'ifa' hand the error of one"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(torch.randn(8, 36))


def test_indirect_feedback_with_graph_breaks():
    run = [
        trained("mlp", [bouton.FeedbackAlignment(kind="ifa")], backend, fullgraph=False, steps=3).values
        for backend in (None, "aot_eager")
    ]
    assert difference(*run) <= allowed("mlp", "aot_eager")
