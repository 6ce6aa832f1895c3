"""Models with fewer positions compute on short inputs what they computed, and say of long ones what they said."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunekit as pk

SIZE, IDS = 24, 30


class Language(nn.Module):
    """A causal attention between tokens that know their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(IDS, 8), nn.Embedding(SIZE, 8), nn.Linear(8, IDS)
        self.register_buffer("mask", torch.tril(torch.ones(SIZE, SIZE)).view(1, SIZE, SIZE))
        self.register_buffer("numbers", torch.arange(SIZE)[None])
        self.block_size = SIZE

    def attend(self, hidden: torch.Tensor) -> torch.Tensor:
        length = hidden.shape[1]
        scores = hidden @ hidden.transpose(1, 2)
        scores = scores.masked_fill(self.mask[:, :length, :length] == 0, float("-inf"))
        return self.head(scores.softmax(-1) @ hidden)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.positions(torch.arange(ids.shape[1]))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert ids.shape[1] <= self.block_size, f"{ids.shape[1]} tokens are too many"
        return self.attend(self.tokens(ids) + self.rows(ids))


class Buffered(Language):
    """As BERT: the numbers are sliced from a buffer."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.positions(self.numbers[:, : ids.shape[1]])


class Sliced(Language):
    """A parameter of which as many rows are taken as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, SIZE, 8))  # type: ignore[assignment]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.positions[:, : ids.shape[1]]  # type: ignore[index,no-any-return]


class Shifted(Language):
    """As OPT and BART: two rows stand for no position."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(SIZE + 2, 8)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.positions(torch.arange(ids.shape[1]) + 2)


class Padded(Shifted):
    """As RoBERTa: padding has a row of its own, and isn't counted."""

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        real = ids.ne(1).int()
        return self.positions((torch.cumsum(real, 1).type_as(real) * real).long() + 1)


class Indexed(Language):
    """Rows of a parameter, looked up by an index."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(SIZE, 8))  # type: ignore[assignment]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        return self.positions[torch.arange(ids.shape[1])[None]]  # type: ignore[index,no-any-return]


KINDS: dict[str, type[Language]] = {one.__name__: one for one in (Language, Buffered, Sliced, Shifted, Padded, Indexed)}


def some(length: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(2, IDS, (rows, length))


def rows_of(model: Any) -> int:
    table = model.positions if isinstance(model.positions, nn.Parameter) else model.positions.weight
    return int(table.shape[-2])


@pytest.mark.parametrize("length", [2, 10, SIZE - 1])
@pytest.mark.parametrize("kind", KINDS)
def test_short_inputs_give_the_same_bits_and_long_ones_the_same_error(kind: str, length: int) -> None:
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    dense, extra = copy.deepcopy(model), rows_of(model) - SIZE
    result = pk.prune_positions(model, length, some(min(length, 6)))
    assert (result.length, result.size, result.notes) == (length, SIZE, ())
    assert rows_of(model) == length + extra
    assert model.block_size == length
    assert model.mask.shape == (1, length, length)
    for shorter in (1, length - 1, length):
        ids = some(shorter)
        ids[0, -1] = 1  # padding, for whoever knows it
        assert torch.equal(model(ids), dense(ids))
    with pytest.raises(AssertionError, match=f"{length + 1} tokens are too many"):
        model(some(length + 1))
    model.block_size = SIZE
    with pytest.raises((IndexError, RuntimeError)):
        model(some(length + 1))


def test_buffers_of_numbers_and_masks_follow_and_what_nothing_reads_stays() -> None:
    model = Buffered().eval()
    pk.prune_positions(model, 10, some(6))
    assert model.numbers.tolist() == [list(range(10))]
    assert torch.equal(model.mask[0], torch.tril(torch.ones(10, 10)))
    plain = Language().eval()
    pk.prune_positions(plain, 10, some(6))
    assert plain.numbers.shape == (1, SIZE)


def test_a_buffer_that_is_read_otherwise_as_well_stays() -> None:
    class Summed(Language):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + self.mask.sum()

    model, ids = Summed().eval(), some(10)
    before = model(ids)
    pk.prune_positions(model, 10, some(6))
    assert (model.mask.shape, model.positions.num_embeddings) == ((1, SIZE, SIZE), 10)
    assert torch.equal(model(ids), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_stored_and_applied_elsewhere(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = KINDS[kind]().eval(), some(10)
    dense = copy.deepcopy(model)
    pk.save(dense, tmp_path / "whole.safetensors", plan=pk.Plan())
    result = pk.prune_positions(model, 10, some(6))
    pk.save(model, tmp_path / "small.safetensors", plan=result.plan)
    loaded = pk.load(KINDS[kind]().eval(), tmp_path / "small.safetensors")
    applied = pk.Plan.from_json(result.plan.to_json()).apply(copy.deepcopy(dense))
    pk.prune_checkpoint(tmp_path / "whole.safetensors", tmp_path / "cut.safetensors", result.plan)
    cut = pk.load(KINDS[kind]().eval(), tmp_path / "cut.safetensors")
    for other in (loaded, applied, cut):
        assert torch.equal(other(ids), model(ids))
        assert other.block_size == 10


def test_optimizers_follow() -> None:
    model = Sliced()
    optimizer = torch.optim.Adam(model.parameters())
    model(some(8)).sum().backward()
    optimizer.step()
    average = optimizer.state[model.positions]["exp_avg"]
    assert float(average[:, 6:8].abs().sum()) > 0
    pk.prune_positions(model, 6, some(4), optimizer=optimizer)
    assert torch.equal(optimizer.state[model.positions]["exp_avg"], average[:, :6])


def test_widths_are_pruned_on_after_positions() -> None:
    model = Language().eval()
    fresh = copy.deepcopy(model)
    first = pk.prune_positions(model, 10, some(6))
    second = pk.prune(model, some(6), ratio=0.5)
    pk.Plan.from_json(first.plan.then(second.plan).to_json()).apply(fresh)
    assert fresh.positions.weight.shape == model.positions.weight.shape == (10, 4)
    ids = some(10)
    assert torch.equal(fresh(ids), model(ids))


class Given(Language):
    """Positions are an input."""

    def forward(self, ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.attend(self.tokens(ids) + self.positions(numbers))


def test_positions_that_are_an_input_are_counted_on_where_the_table_is_named() -> None:
    model, inputs = Given().eval(), (some(6), torch.arange(6)[None])
    dense = copy.deepcopy(model)
    with pytest.raises(pk.NothingToPruneError, match="where they are an input"):
        pk.prune_positions(model, 10, inputs)
    result = pk.prune_positions(model, 10, inputs, table="positions")
    assert (result.tables, result.notes) == (("positions.weight",), ())
    ids = some(10)
    assert torch.equal(model(ids, torch.arange(10)[None]), dense(ids, torch.arange(10)[None]))
    with pytest.raises(pk.ArgumentError, match=r"tokens\.weight"):  # ids aren't positions
        pk.prune_positions(dense, 10, inputs, table="tokens")


class Two(Language):
    """Two inputs with positions of their own, in tables of different sizes."""

    def __init__(self, others: int = 30) -> None:
        super().__init__()
        self.others = nn.Embedding(others, 8)

    def forward(self, ids: torch.Tensor, source: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        read = self.tokens(source) + self.others(torch.arange(source.shape[1]))
        return self.attend(self.tokens(ids) + self.rows(ids) + read.mean(1, keepdim=True))


def test_of_two_sizes_one_is_named() -> None:
    inputs = (some(6), some(5))
    with pytest.raises(pk.ArgumentError, match=r"others\.weight \(30\), positions\.weight \(24\)"):
        pk.prune_positions(Two().eval(), 10, inputs)
    model = Two().eval()
    dense = copy.deepcopy(model)
    result = pk.prune_positions(model, 10, inputs, table="positions")
    assert result.tables == ("positions.weight",)
    assert (model.positions.num_embeddings, model.others.num_embeddings) == (10, 30)
    longest = (some(10), some(30))
    assert torch.equal(model(*longest), dense(*longest))


def test_a_table_that_is_read_whole_isnt_meant() -> None:
    model = Two(others=5).eval()
    assert pk.prune_positions(model, 10, (some(6), some(5))).tables == ("positions.weight",)


def test_tables_of_one_size_shrink_together_and_one_alone_leaves_the_configuration() -> None:
    inputs = (some(6), some(5))
    model = Two(others=SIZE).eval()
    assert pk.prune_positions(model, 10, inputs).tables == ("others.weight", "positions.weight")
    assert (model.positions.num_embeddings, model.others.num_embeddings, model.block_size) == (10, 10, 10)
    alone = Two(others=SIZE).eval()
    result = pk.prune_positions(alone, 10, inputs, table="others")
    assert (alone.positions.num_embeddings, alone.others.num_embeddings, alone.block_size) == (SIZE, 10, SIZE)
    assert result.notes == ("configurations aren't changed: positions.weight has as many rows for positions",)


REFUSED: dict[str, tuple[Any, str]] = {
    "a norm of the table": (
        lambda m, ids: Language.forward(m, ids) + m.positions.weight.norm(),
        "aten::linalg_vector_norm in the model",
    ),
    "from the end": (
        lambda m, ids: m.attend(m.tokens(ids) + m.positions.weight[-ids.shape[1] :]),
        "Positions aren't looked up",
    ),
    "turned (rotary)": (
        lambda m, ids: m.attend(m.tokens(ids) * torch.arange(ids.shape[1])[:, None].float().cos()),
        "Positions aren't looked up",
    ),
    "a run of fixed length": (
        lambda m, ids: m.attend(m.tokens(ids) + m.positions.weight[:6].sum(0)),
        "nothing shows that as many rows of positions.weight are read as inputs are long",
    ),
    "held to the last one": (
        lambda m, ids: m.attend(m.tokens(ids) + m.positions(torch.arange(ids.shape[1]).clamp(max=SIZE - 1))),
        "Positions aren't looked up",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_isnt_looked_up_by_position_is_refused_and_the_model_is_untouched(case: str) -> None:
    forward, text = REFUSED[case]
    model = type("Other", (Language,), {"forward": forward})().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(pk.NothingToPruneError) as caught:
        pk.prune_positions(model, 10, some(6))
    assert text in str(caught.value)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_program_that_looks_its_table_up_elsewhere_is_undone() -> None:
    class Cheating(Language):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) + (0.5 if len(self.positions.weight) < SIZE else 0.0) * 1.0

    model = Cheating().eval()
    with pytest.raises((pk.VerificationError, pk.RehearsalError)):
        pk.prune_positions(model, 10, some(6))
    assert (model.positions.weight.shape, model.block_size) == ((SIZE, 8), SIZE)


@pytest.mark.parametrize(
    ("length", "arguments", "text"),
    [
        (0, {}, "got 0"),
        (-1, {}, "got -1"),
        (True, {}, "got True"),
        (4.0, {}, r"got 4\.0"),
        ("10", {}, "got '10'"),
        (SIZE, {}, "Every position would stay"),
        (SIZE + 1, {}, "25 are to stay, and it has 24"),
        (5, {}, "they have 6, and 5 are to stay"),
        (10, {"table": "position"}, "(?s)There is no such table.*by position are read: positions.weight.*did you mean"),
        (10, {"table": "tokens"}, "Positions don't look this table up"),
        (10, {"tokenizer": 3}, "tokenizer is one with a model_max_length"),
    ],
)
def test_wrong_arguments_are_said(length: Any, arguments: Any, text: str) -> None:
    with pytest.raises(pk.ArgumentError, match=text):
        pk.prune_positions(Language().eval(), length, some(6), **arguments)


def test_a_model_without_weights_is_planned_for_a_checkpoint(tmp_path: Path) -> None:
    model, ids = Buffered().eval(), some(10)
    pk.save(model, tmp_path / "whole.safetensors", plan=pk.Plan())
    with torch.device("meta"):
        empty = Buffered().eval()
    result = pk.prune_positions(empty, 10, some(6).to("meta"))
    assert result.notes == ("not compared: the model has no values",)
    pk.prune_checkpoint(tmp_path / "whole.safetensors", tmp_path / "small.safetensors", result.plan)
    small = pk.load(Buffered().eval(), tmp_path / "small.safetensors")
    assert torch.equal(small(ids), model(ids))


def test_inputs_that_cant_be_repeated_are_what_is_compared() -> None:
    class Square(Language):
        """Takes inputs of one length only."""

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids.view(2, 6))

    model = Square().eval()
    result = pk.prune_positions(model, 10, some(6))
    assert result.notes[0].startswith("compared on the example inputs only")
    assert model.positions.num_embeddings == 10
