"""Rules of spatial operations: written answers, and execution."""

from __future__ import annotations

from prunekit_plugins.ops import spatial
from tests.plugins.ops.cases import Case, case, checks_of

CLOSE = 1e-12
EXCUSED: dict[str, str] = {}
SPATIAL = {"x2": "a spatial dim"}
SHAPES = {1: (2, 3, 8), 2: (2, 3, 8, 6), 3: (2, 3, 4, 4, 4)}


def answer(dims: int, out: str, results: int = 1, batch: bool = True) -> str:
    lead = "a2 b3" if batch else "a3"
    sizes = " ".join(f"{size}!" for size in SHAPES[dims][2:])
    return f"{lead} {sizes} -> " + ", ".join([f"{lead} {out}"] * results)


def over(expression: str, dims: int, out: str, results: int = 1) -> list[Case]:
    """A picture with a batch dim and one without, which some operations don't take."""
    pins = {"x2": "padded with its own values"} if expression.startswith("F.pad") else SPATIAL
    made = [case(expression, answer(dims, out, results), x=SHAPES[dims], pins=pins, tolerance=CLOSE)]
    if "upsample" not in expression and "interpolate" not in expression:
        made.append(case(expression, answer(dims, out, results, batch=False), x=SHAPES[dims][1:], tolerance=CLOSE))
    return made


CASES = [
    *over("F.adaptive_avg_pool1d(x, 3)", 1, "3!"),
    *over("F.adaptive_avg_pool2d(x, (3, 2))", 2, "3! 2!"),
    *over("F.adaptive_avg_pool2d(x, 1)", 2, "1 1"),
    *over("F.adaptive_avg_pool3d(x, 2)", 3, "2! 2! 2!"),
    *over("aten._adaptive_avg_pool2d(x, [3, 2])", 2, "3! 2!"),
    *over("aten._adaptive_avg_pool3d(x, [2, 2, 2])", 3, "2! 2! 2!"),
    *over("aten.adaptive_max_pool1d(x, [3])", 1, "3!", 2),
    *over("aten.adaptive_max_pool2d(x, [3, 2])", 2, "3! 2!", 2),
    *over("aten.adaptive_max_pool3d(x, [2, 2, 2])", 3, "2! 2! 2!", 2),
    *over("F.avg_pool1d(x, 2)", 1, "4!"),
    *over("F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)", 2, "4! 3!"),
    *over("F.avg_pool3d(x, 2)", 3, "2! 2! 2!"),
    *over("F.max_pool1d(x, 2)", 1, "4!"),
    *over("F.max_pool2d(x, 3, stride=2, padding=1)", 2, "4! 3!"),
    *over("F.max_pool2d(x, 3, dilation=2, ceil_mode=True, stride=2)", 2, "3! 2!"),
    *over("F.max_pool3d(x, 2)", 3, "2! 2! 2!"),
    *over("F.max_pool1d(x, 2, return_indices=True)", 1, "4!", 2),
    *over("F.max_pool2d(x, 2, return_indices=True)", 2, "4! 3!", 2),
    *over("F.max_pool3d(x, 2, return_indices=True)", 3, "2! 2! 2!", 2),
    *over('F.pad(x, (1, 2), "reflect")', 1, "11!"),
    *over('F.pad(x, (1, 2, 1, 1), "reflect")', 2, "10! 9!"),
    *over("aten.reflection_pad1d(x, [1, 2])", 1, "11!"),
    *over("aten.reflection_pad2d(x, [1, 2, 0, 1])", 2, "9! 9!"),
    *over("aten.reflection_pad3d(x, [1, 1, 0, 1, 0, 0])", 3, "4! 5! 6!"),
    *over("aten.replication_pad1d(x, [1, 2])", 1, "11!"),
    *over("aten.replication_pad2d(x, [1, 2, 0, 1])", 2, "9! 9!"),
    *over("aten.replication_pad3d(x, [1, 1, 0, 1, 0, 0])", 3, "4! 5! 6!"),
    *over("F.interpolate(x, scale_factor=2)", 1, "16!"),
    *over("F.interpolate(x, size=(5, 7))", 2, "5! 7!"),
    *over("F.interpolate(x, scale_factor=2)", 3, "8! 8! 8!"),
    *over('F.interpolate(x, size=5, mode="nearest-exact")', 1, "5!"),
    *over('F.interpolate(x, size=5, mode="nearest-exact")', 2, "5! 5!"),
    *over('F.interpolate(x, size=5, mode="linear")', 1, "5!"),
    *over('F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)', 2, "16! 12!"),
    *over('F.interpolate(x, size=5, mode="bicubic")', 2, "5! 5!"),
    *over('F.interpolate(x, size=5, mode="trilinear")', 3, "5! 5! 5!"),
    *over('F.interpolate(x, size=5, mode="bilinear", antialias=True)', 2, "5! 5!"),
    *over('F.interpolate(x, size=5, mode="bicubic", antialias=True)', 2, "5! 5!"),
    # where to look is data
    case(
        "F.grid_sample(x, g, align_corners=False)",
        "a2 b3 4! 5!, a2 6! 7! 2! -> a2 b3 6! 7!",
        x=(2, 3, 4, 5),
        g=(2, 6, 7, 2),
        pins={"g1": "a spatial dim", "x2": "a spatial dim"},
        tolerance=CLOSE,
    ),
    case(
        "aten.grid_sampler_2d(x, g, 0, 0, False)",
        "a2 b3 4! 5!, a2 6! 7! 2! -> a2 b3 6! 7!",
        x=(2, 3, 4, 5),
        g=(2, 6, 7, 2),
        tolerance=CLOSE,
    ),
    case(
        "aten.grid_sampler_3d(x, g, 0, 0, False)",
        "a2 b3 4! 4! 4!, a2 2! 2! 2! 3! -> a2 b3 2! 2! 2!",
        x=(2, 3, 4, 4, 4),
        g=(2, 2, 2, 2, 3),
        tolerance=CLOSE,
    ),
    # each channel brings its kernel window along
    case("F.unfold(x, 2)", "a2 b3 3! 4! -> a2 (b3*4!) 6!", x=(2, 3, 3, 4), pins=SPATIAL),
    case("F.unfold(x, (2, 3), stride=2, padding=1)", "a3 4! 4! -> (a3*6!) 6!", x=(3, 4, 4)),
    # padding a free dim puts pinned runs around it
    case("F.pad(x, (1, 2))", "a2 b3 -> a2 (1+b3+2!)", x=(2, 3)),
    case("F.pad(x, (2, 0))", "a2 b3 -> a2 (2!+b3)", x=(2, 3)),
    case("F.pad(x, (0, 0, 0, 4))", "a2 b3 -> (a2+4!) b3", x=(2, 3)),
    case("F.pad(x, (1, 1), value=5.0)", "a2 b3 -> a2 (1+b3+1)", x=(2, 3)),
    case("F.pad(x, (0, 0))", "a2 b3 -> a2 b3", x=(2, 3)),
    case("F.pad(x, (-1, 0))", "a2 (1+b5) -> a2 b5", x=(2, 6)),
    case("F.pad(x, (-2, -1))", "a2 (2!+b3+1) -> a2 b3", x=(2, 6)),
    case("F.pad(x, (-2, 2))", "a2 (2!+b4) -> a2 (b4+2!)", x=(2, 6)),
    case('F.pad(x, (1, 2, 0, 0), "constant")', "a2 b3 c4 -> a2 b3 (1+c4+2!)", x=(2, 3, 4)),
    case(
        'F.pad(x, (1, 2), "circular")', "a2 b3 4! -> a2 b3 7!", x=(2, 3, 4), pins={"x2": "padded with its own values"}
    ),
    case("aten.constant_pad_nd(x, [1, 2])", "a2 b3 -> a2 (1+b3+2!)", x=(2, 3)),
    *over("aten._upsample_nearest_exact3d(x, [2, 2, 2])", 3, "2! 2! 2!"),
    # patches are put back
    case("F.fold(x, (3, 4), 2)", "a2 (b3*4!) 6! -> a2 b3 3! 4!", x=(2, 12, 6)),
    case(
        "F.affine_grid(x, (2, 3, 4, 5), align_corners=False)", "a2 2! 3! -> a2 4! 5! 2!", x=(2, 2, 3), tolerance=CLOSE
    ),
    case(
        "F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)",
        "a2 b3 4! 4! -> a2 b3 4! 4!",
        x=(2, 3, 4, 4),
        pins=SPATIAL,
    ),
    case(
        "F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2)",
        "a2 b3 2! 4! 2! -> a2 b3 2! 4! 2!",
        x=(2, 3, 2, 4, 2),
    ),
]

test_written_answer, test_by_execution, test_every_key_is_an_operation, test_every_rule_is_met = checks_of(
    spatial.RULES, CASES, EXCUSED
)
