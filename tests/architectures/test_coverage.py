"""The table of docs/architectures.md and `bouton list --coverage`: complete, and true of training."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import bouton
from bouton.cli import main
from bouton.lab.coverage import (
    LAYERS,
    MARKERS,
    Cell,
    Conv1D,
    coverage,
    print_coverage,
    reach,
    to_markdown,
    write_page,
)
from bouton.layer_types import layer_types, slots

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
EXAMPLES = [example for entry in bouton.registry().values() for example in entry.examples]
BY_NAME = {kind.__name__: kind for kind in vars(nn).values() if isinstance(kind, type)}


@pytest.fixture(scope="module")
def found():
    return coverage()


def test_every_layer_type_has_an_example():
    assert set(layer_types()) <= set(LAYERS)
    for name, make in LAYERS.items():
        assert slots(make()), f"{name} has no weight that bouton knows"
        assert isinstance(make(), BY_NAME.get(name, nn.Module))


def test_every_mechanism_and_layer_type_is_in_the_table(found):
    assert {label.partition("(")[0] for label in found.rows} == set(bouton.registry())
    assert sorted(name for names in found.kinds for name in names) == sorted(LAYERS)
    assert all(len(cells) == len(found.kinds) for cells in found.rows.values())


def test_forms_that_are_reached_differently_have_rows_of_their_own(found):
    assert {label for label in found.rows if "(" in label} >= {
        "Grapes(mode='local')",
        "Grapes(mode='presynaptic')",
        "DalePrinciple(signs='incoming')",
        "PlasticityDiversity(distribution='activity')",
    }


@pytest.mark.parametrize(
    ("label", "layer", "expected"),
    [
        ("Grapes", "Linear", "yes"),
        ("Grapes", "LSTM", "no"),
        ("Grapes", "LSTMCell", "yes"),
        ("Grapes(mode='local')", "LSTM", "yes"),
        ("MultiSynapse", "MultiheadAttention", "no"),
        ("SpineRemodeling", "Linear under weight_norm", "no"),
        ("SpineRemodeling", "pruned Linear", "yes"),
        ("PlasticityDiversity", "Embedding", "where="),
    ],
)
def test_cells_that_are_known(found, label, layer, expected):
    (place,) = [place for place, names in enumerate(found.kinds) if layer in names]
    assert found.rows[label][place].reach == expected


def test_global_randomness_is_left_alone():
    before = torch.get_rng_state()
    coverage()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_page_has_the_table_that_the_code_makes(found):
    _, _, rest = PAGE.read_text().partition(MARKERS[0])
    table, _, _ = rest.partition(MARKERS[1])
    assert table.strip() == to_markdown(found), "type: python -m bouton.lab.coverage docs/architectures.md"


def test_a_page_is_written_between_its_markers(found, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{MARKERS[0]}\nof old\n{MARKERS[1]}\nbelow\n")
    write_page(page, found)
    assert page.read_text() == f"above\n{MARKERS[0]}\n{to_markdown(found)}\n{MARKERS[1]}\nbelow\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no <!-- coverage -->"):
        write_page(page, found)


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_shows_every_cell(found, width):
    console = Console(width=width, record=True, file=io.StringIO())
    print_coverage(found, console)
    shown = console.export_text()
    assert "…" not in shown
    for names in found.kinds:
        assert ", ".join(names) in " ".join(shown.split())
    for number, reason in enumerate(found.reasons, 1):
        assert f"{number} {reason}" in " ".join(shown.split())


def test_the_command_prints_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["list", "--coverage"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"SpineRemodeling +yes +yes +yes +no 3 .*where=", shown)


@pytest.mark.parametrize("number", range(PAGE.read_text().count("```python")))
def test_the_page_runs(number):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[number]
    exec(compile(code, f"architectures.md, example {number}", "exec"), {})


# Whether reports are true: what they say is taken changes training, what they say is left cannot be chosen.


class Net(nn.Module):
    """The layer between two others, and a read-out."""

    def __init__(self, layer):
        super().__init__()
        self.first, self.layer = nn.Linear(8, 8), layer
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.hidden(torch.tanh(self.through(x)))))

    def through(self, x):
        """What the layer makes of features ``[sample, 8]``, as ``[sample, 8]``."""
        layer = self.layer
        if isinstance(layer, nn.Linear | Conv1D):
            return layer(x)
        if isinstance(layer, nn.Bilinear):
            return layer(x, x)
        if isinstance(layer, nn.Embedding):
            return layer((x > 0).sum(1) % 8)
        if isinstance(layer, nn.EmbeddingBag):
            return layer((x > 0).long())
        if isinstance(layer, nn.RNNCellBase):
            later = layer(x, layer(x))
            return later[0] if isinstance(layer, nn.LSTMCell) else later
        if isinstance(layer, nn.RNNBase):
            return layer(torch.stack([x, x]))[0][-1]
        if isinstance(layer, nn.MultiheadAttention):
            return layer(x, x, x)[0]
        kernel = layer.kernel_size
        return layer(x.reshape(-1, 8, *[1] * len(kernel)).expand(-1, -1, *kernel)).flatten(2).mean(2)


def trained(make, mechanisms):
    torch.manual_seed(0)
    net = Net(make())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.005)
    if mechanisms:
        bouton.attach(net, optimizer, mechanisms)
    for step in range(3):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        # large, so that some gradients are what crystallization calls large
        (100 * nn.functional.cross_entropy(net(x), torch.arange(6))).backward()
        optimizer.step()
    return net.state_dict()


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_table_is_true_of_training(layer):
    torch.manual_seed(0)
    make, plain = LAYERS[layer], trained(LAYERS[layer], [])
    for example in EXAMPLES:
        cell = reach(Net(make()), example)
        chosen = dataclasses.replace(example, where="layer*")
        if isinstance(example, bouton.SpineRemodeling):  # of few synapses, too, some are weak
            chosen = dataclasses.replace(chosen, d_re=0.5)
        if cell.reach == "no":
            assert cell.left
            with pytest.raises(ValueError, match="found no weight to act on"):
                bouton.attach(Net(make()), torch.optim.SGD(Net(make()).parameters()), [chosen])
            continue
        base = plain
        if isinstance(example, bouton.FeedbackAlignment):  # needs the read-out
            base = trained(make, [dataclasses.replace(example, where="head")])
            chosen = dataclasses.replace(example, where=["layer*", "head"])
        assert not same(trained(make, [chosen]), base), example


def test_a_layer_that_is_taken_in_part_is_said_to_be(found):
    assert reach(Net(LAYERS["GRUCell"]()), bouton.Grapes()) == Cell(
        "yes", ("the error at these nodes is modulated once, for weight_ih, by the share of both weights",)
    )
