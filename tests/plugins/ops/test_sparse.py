"""Rules of sparse tensors: written answers, and execution."""

from __future__ import annotations

import torch

from prunekit_plugins.ops import sparse
from tests.plugins.ops.cases import case, checks_of

STORED = "its positions are stored as numbers"
EXCUSED: dict[str, str] = {
    f"aten::{name}": "made inside composite operations, which arrive whole"
    for name in ["_sparse_coo_tensor_with_dims_and_tensors", "_sparse_coo_tensor_unsafe", "_sparse_mm_reduce_impl"]
}
PLACES = torch.tensor([[0, 1, 1, 3], [2, 0, 2, 1]])
LENGTHS = torch.tensor([2, 0, 3])
MADE = "torch.sparse_coo_tensor(i, v, (4, 3))"

CASES = [
    case(f"torch.sparse.mm({MADE}, x)", "2! 4!, 4!, 3! a5 -> 4! a5", i=PLACES, v=(4,), x=(3, 5)),
    case(f"{MADE} @ x", "2! 4!, 4!, 3! a5 -> 4! a5", i=PLACES, v=(4,), x=(3, 5)),
    case(f"{MADE}.coalesce().to_dense()", "2! 4!, 4! -> 4! 3!", i=PLACES, v=(4,)),
    case("torch.sparse_coo_tensor(i, v, (4, 3, 5)).to_dense()", "2! 4!, 4! a5 -> 4! 3! a5", i=PLACES, v=(4, 5)),
    case("x.to_sparse(1).to_dense()", "4! a5 -> 4! a5", x=(4, 5), pins={"x0": STORED}),
    case("x.to_sparse().to_dense()", "4! 5! -> 4! 5!", x=(4, 5), pins={"x0": STORED, "x1": STORED}),
    case(
        "torch.sparse.mm(x.to_sparse_csr(), y)",
        "4! 3!, 3! a5 -> 4! a5",
        x=(4, 3),
        y=(3, 5),
        unrun="it is in beta",
        slow=True,
    ),
    case(
        "torch.sparse.mm(x.to_sparse_csc(), y)",
        "4! 3!, 3! a5 -> 4! a5",
        x=(4, 3),
        y=(3, 5),
        unrun="it is in beta",
        slow=True,
    ),
    case(
        "torch.sparse_coo_tensor(i, v, (4, 3, 5)).coalesce().values()",
        "2! 4!, 4! a5 -> 0 a5",
        i=PLACES,
        v=(4, 5),
        unrun="stand-ins hold no values",
    ),
    case("x.to_sparse()._indices(), x.to_sparse()._values()", "4! 5! -> 2! 0, 0", x=(4, 5)),
    case("x.to_sparse_csr().crow_indices()", "4! 5! -> 5!", x=(4, 5), unrun="it is in beta"),
    case("x.to_sparse_csr().col_indices()", "4! 5! -> 0", x=(4, 5), unrun="it is in beta"),
    case(f"torch.sparse.addmm(b, {MADE}, x)", "2! 4!, 4!, 3! a5, 4! a5 -> 4! a5", i=PLACES, v=(4,), x=(3, 5), b=(4, 5)),
    case(f"{MADE}.coalesce().indices()", "2! 4!, 4! -> 2! 0", i=PLACES, v=(4,)),
    case(f"torch.addmm(b, {MADE}, x)", "2! 4!, 4!, 3! a5, a5 -> 4! a5", i=PLACES, v=(4,), x=(3, 5), b=(5,)),
    case("aten.segment_reduce(x, 'sum', lengths=n)", "5! a3, 3! -> 3! a3", x=(5, 3), n=LENGTHS),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    sparse.RULES, CASES, EXCUSED
)
