"""Graph networks: torch_geometric's models and layers, among them GPSConv, and CHGNet, whose forces are derivatives."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Built = tuple[Any, ...]
NODES, EDGES, IN, WIDTH, OUT, WIDE = 10, 30, 8, 16, 5, 4


def edges() -> torch.Tensor:
    """A graph in which no node is without an edge."""
    ring = torch.stack([torch.arange(NODES), (torch.arange(NODES) + 1) % NODES])
    return torch.cat([ring, torch.randint(0, NODES, (2, EDGES - NODES))], dim=1)


def graph(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(NODES, IN), "edge_index": edges(), **more}


def model(name: str, *args: Any, **options: Any) -> Callable[[], Built]:
    """A whole model of torch_geometric."""
    return lambda: (getattr(importlib.import_module("torch_geometric.nn"), name)(*args, **options), graph())


class Layers(nn.Module):
    """Two layers of a kind between linear ones."""

    def __init__(self, make: Callable[[Any], nn.Module], *, wide: bool = False) -> None:
        super().__init__()
        library = importlib.import_module("torch_geometric.nn")
        self.first, self.last = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)
        self.layers = nn.ModuleList(make(library) for _ in range(2))
        self.wide = wide

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, edge_index, **more).relu()
        return self.last(x)


def layers(
    make: Callable[[Any], nn.Module], refused: str = "", **more: Callable[[], torch.Tensor]
) -> Callable[[], Built]:
    return lambda: (Layers(make), graph(**{name: value() for name, value in more.items()}), {"refused": refused})


def attributes(width: int = WIDE) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(EDGES, width)


def mlp(*sizes: int) -> nn.Module:
    parts: list[nn.Module] = []
    for rows, columns in itertools.pairwise(sizes):
        parts += [nn.Linear(rows, columns), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def batch() -> torch.Tensor:
    return torch.tensor([0] * (NODES // 2) + [1] * (NODES // 2))


def neighbours(pos: torch.Tensor, r: float, batch: torch.Tensor, **more: Any) -> torch.Tensor:
    """Pairs of nodes of one graph that are closer than a radius, as edges."""
    near = (torch.cdist(pos, pos) < r) & (batch[:, None] == batch)
    if not more.get("loop"):
        near = near & ~torch.eye(len(pos), dtype=torch.bool)
    return near.nonzero().T


def atoms(name: str, **options: Any) -> Callable[[], Built]:
    """A model of molecules: atomic numbers, positions, and which molecule an atom is of."""

    def build() -> Built:
        for module in ("schnet", "visnet"):  # pyg-lib, which finds neighbours, isn't on PyPI
            importlib.import_module(f"torch_geometric.nn.models.{module}").radius_graph = neighbours
        made = getattr(importlib.import_module("torch_geometric.nn"), name)(**options)
        return made, (torch.randint(1, 9, (NODES,)), torch.rand(NODES, 3) * 3, batch())

    return build


class Pooled(nn.Module):
    """Graph convolutions, a readout of each graph, and a classifier."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        library = importlib.import_module("torch_geometric.nn")
        self.first, self.second = library.GraphConv(IN, WIDTH), library.GraphConv(WIDTH, WIDTH)
        self.pool, self.last = getattr(library, pool), nn.Linear(WIDTH, OUT)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(x, edge_index).relu(), edge_index).relu()
        return self.last(self.pool(x, batch))


class Hetero(nn.Module):
    """Two kinds of nodes, with a layer for each kind of edge."""

    def __init__(self) -> None:
        super().__init__()
        library = importlib.import_module("torch_geometric.nn")
        self.kinds = [("user", "likes", "item"), ("item", "liked", "user")]
        self.first = library.HeteroConv({kind: library.SAGEConv((IN, IN), WIDTH) for kind in self.kinds})
        self.second = library.HeteroConv({kind: library.SAGEConv((WIDTH, WIDTH), WIDTH) for kind in self.kinds})
        self.last = nn.Linear(WIDTH, OUT)

    def forward(self, user: torch.Tensor, item: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        nodes = {"user": user, "item": item}
        both = dict(zip(self.kinds, (edge_index, edge_index.flip(0)), strict=True))
        nodes = {kind: x.relu() for kind, x in self.first(nodes, both).items()}
        return self.last(self.second(nodes, both)["item"])


GEOMETRIC: dict[str, Callable[[], Built]] = {
    "GCN": model("GCN", IN, WIDTH, 2, OUT),
    "GCN-jumping": model("GCN", IN, WIDTH, 3, OUT, jk="cat", norm="BatchNorm"),
    "GraphSAGE": model("GraphSAGE", IN, WIDTH, 2, OUT),
    "GIN": model("GIN", IN, WIDTH, 2, OUT, norm="GraphNorm"),
    "GAT": model("GAT", IN, WIDTH, 2, OUT, heads=2),
    "GATv2": model("GAT", IN, WIDTH, 2, OUT, heads=2, v2=True),
    "EdgeCNN": model("EdgeCNN", IN, WIDTH, 2, OUT),
    "PNA": model(
        "PNA", IN, WIDTH, 2, OUT, aggregators=["mean", "max", "std"], scalers=["identity", "amplification"],
        deg=torch.tensor([0, 2, 4, 3, 1]),
    ),
    "GraphUNet": model("GraphUNet", IN, WIDTH, OUT, depth=2),
    "AttentiveFP": lambda: (
        importlib.import_module("torch_geometric.nn").AttentiveFP(IN, WIDTH, OUT, WIDE, 2, 2),
        graph(edge_attr=torch.randn(EDGES, WIDE), batch=batch()),
    ),
    "LINKX": lambda: (
        importlib.import_module("torch_geometric.nn").LINKX(NODES, IN, WIDTH, OUT, 2), graph()
    ),
    "PMLP": model("PMLP", IN, WIDTH, OUT, 2),
    "SGFormer": lambda: (
        importlib.import_module("torch_geometric.nn").SGFormer(IN, WIDTH, OUT), graph(batch=batch())
    ),
    "Polynormer": lambda: (
        importlib.import_module("torch_geometric.nn").Polynormer(IN, WIDTH, OUT, local_layers=2, global_layers=1),
        graph(batch=batch()),
    ),
    "SchNet": atoms("SchNet", hidden_channels=16, num_filters=16, num_interactions=2, num_gaussians=10, cutoff=5.0),
    "ViSNet": atoms("ViSNet", num_heads=2, num_layers=2, hidden_channels=16, num_rbf=8),
    "RECT_L": model("RECT_L", IN, WIDTH),
    "NeuralFingerprint": lambda: (
        importlib.import_module("torch_geometric.nn").NeuralFingerprint(IN, WIDTH, OUT, 2), graph(batch=batch())
    ),
    "GPSConv": layers(lambda nn_: nn_.GPSConv(WIDTH, nn_.GINConv(mlp(WIDTH, 24, WIDTH)), heads=2)),
    "GPSConv-performer": layers(
        lambda nn_: nn_.GPSConv(WIDTH, nn_.GCNConv(WIDTH, WIDTH), heads=2, attn_type="performer")
    ),
    "TransformerConv": layers(lambda nn_: nn_.TransformerConv(WIDTH, WIDTH // 2, heads=2, beta=True)),
    "TransformerConv-edges": layers(
        lambda nn_: nn_.TransformerConv(WIDTH, WIDTH // 2, heads=2, edge_dim=WIDE), edge_attr=attributes()
    ),
    "GINEConv": layers(lambda nn_: nn_.GINEConv(mlp(WIDTH, 24, WIDTH), edge_dim=WIDE), edge_attr=attributes()),
    "NNConv": layers(
        lambda nn_: nn_.NNConv(WIDTH, WIDTH, mlp(WIDE, 12, WIDTH * WIDTH)), edge_attr=attributes()
    ),
    "GENConv": layers(lambda nn_: nn_.GENConv(WIDTH, WIDTH, learn_t=True)),
    "ResGatedGraphConv": layers(lambda nn_: nn_.ResGatedGraphConv(WIDTH, WIDTH)),
    "GatedGraphConv": layers(lambda nn_: nn_.GatedGraphConv(WIDTH, 2)),
    "ChebConv": layers(lambda nn_: nn_.ChebConv(WIDTH, WIDTH, K=3)),
    "TAGConv": layers(lambda nn_: nn_.TAGConv(WIDTH, WIDTH)),
    "ARMAConv": layers(lambda nn_: nn_.ARMAConv(WIDTH, WIDTH, num_stacks=2, num_layers=2)),
    "APPNP": layers(lambda nn_: nn_.Sequential("x, edge_index", [
        (nn.Linear(WIDTH, WIDTH), "x -> x"), (nn_.APPNP(3, 0.1), "x, edge_index -> x")])),
    "SuperGATConv": layers(lambda nn_: nn_.SuperGATConv(WIDTH, WIDTH // 2, heads=2)),
    "FiLMConv": layers(lambda nn_: nn_.FiLMConv(WIDTH, WIDTH)),
    "RGCNConv": layers(
        lambda nn_: nn_.RGCNConv(WIDTH, WIDTH, num_relations=3),
        "argument fill_value is [3, 15",  # a heuristic fitted to the widths chooses the program
        edge_type=lambda: torch.randint(0, 3, (EDGES,)),
    ),
    "RGATConv": layers(
        lambda nn_: nn_.RGATConv(WIDTH, WIDTH, num_relations=3), edge_type=lambda: torch.randint(0, 3, (EDGES,))
    ),
    "MixHopConv": layers(lambda nn_: nn_.Sequential("x, edge_index", [
        (nn_.MixHopConv(WIDTH, WIDTH), "x, edge_index -> x"), (nn.Linear(3 * WIDTH, WIDTH), "x -> x")])),
    "GCN2Conv": lambda: (Initial(), graph()),
    "pooled-mean": lambda: (Pooled("global_mean_pool"), graph(batch=batch())),
    "pooled-max": lambda: (Pooled("global_max_pool"), graph(batch=batch())),
    "hetero": lambda: (
        Hetero(), {"user": torch.randn(NODES, IN), "item": torch.randn(NODES, IN), "edge_index": edges()}
    ),
}  # fmt: skip


class Initial(nn.Module):
    """Layers that mix the first features in again."""

    def __init__(self) -> None:
        super().__init__()
        library = importlib.import_module("torch_geometric.nn")
        self.first, self.last = nn.Linear(IN, WIDTH), nn.Linear(WIDTH, OUT)
        self.layers = nn.ModuleList(library.GCN2Conv(WIDTH, 0.1, theta=0.5, layer=i + 1) for i in range(2))

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        x = start = self.first(x).relu()
        for layer in self.layers:
            x = layer(x, start, edge_index).relu()
        return self.last(x)


def crystal(task: str) -> Callable[[], Built]:
    """CHGNet on rock salt: the energy, or with forces, stress and magnetic moments, which are derivatives."""

    def build() -> Built:
        chgnet = importlib.import_module("chgnet.model.model").CHGNet
        pymatgen = importlib.import_module("pymatgen.core")
        made = chgnet(
            atom_fea_dim=16, bond_fea_dim=16, angle_fea_dim=16, num_radial=7, num_angular=7, n_conv=2,
            atom_conv_hidden_dim=16, bond_conv_hidden_dim=16, mlp_hidden_dims=(16, 16), verbose=False,
            composition_model=None,
        )  # fmt: skip
        lattice = pymatgen.Lattice.cubic(4.2)
        places = [[0, 0, 0], [0.51, 0.5, 0], [0, 0.5, 0.52], [0.5, 0.02, 0.5]]
        structure = pymatgen.Structure(lattice, ["Na", "Cl", "Na", "Cl"], places)
        return made, {"graphs": [made.graph_converter(structure)] * 2, "task": task}

    return build


MODELS: Mapping[str, Mapping[str, Callable[[], Built]]] = {
    "torch_geometric": GEOMETRIC,
    "chgnet": {"CHGNet-energy": crystal("e"), "CHGNet-forces": crystal("efsm")},
}
