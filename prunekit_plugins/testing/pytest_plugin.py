"""A pytest plugin: registries that hold what a test says and nothing else.

It is switched on with ``pytest_plugins = ["prunekit.testing.pytest_plugin"]`` in the top-level ``conftest.py``. It
has no entry point of its own, because pytest would import it, and torch with it, at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata

import pytest

from prunekit_core.plugins.entries import BLOCK_VARIABLE, NO_PLUGINS_VARIABLE, normal_name
from prunekit_core.plugins.loading import BUILT_IN, ENTRY_POINT_GROUP
from prunekit_core.plugins.registry import Registry

MakeRegistry = Callable[..., Registry]


@pytest.fixture
def prunekit_registry(monkeypatch: pytest.MonkeyPatch) -> MakeRegistry:
    """Makes isolated registries: ``prunekit_registry(*plugins, block=())``.

    Args of the function:
        plugins: Modules or objects with ``hookimpl`` functions, or names of installed distributions with entry points.
        block: Plugins to leave out, built-in ones among them.

    Besides these plugins the registry holds the built-in ones. Other installed plugins, ``PRUNEKIT_BLOCK`` and
    ``PRUNEKIT_NO_PLUGINS`` don't count. The registry is strict: whatever is wrong with a plugin is a `PluginError`.
    """
    for variable in (BLOCK_VARIABLE, NO_PLUGINS_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    return _make


def _make(*plugins: object, block: Iterable[str] = ()) -> Registry:
    wanted = {BUILT_IN, *(normal_name(plugin) for plugin in plugins if isinstance(plugin, str))}
    points = metadata.entry_points(group=ENTRY_POINT_GROUP)
    installed = {normal_name(point.dist.name) for point in points if point.dist}
    absent = wanted - installed - {BUILT_IN}
    if absent:
        raise AssertionError(
            f"no entry points of group {ENTRY_POINT_GROUP!r} are installed by {', '.join(sorted(absent))}"
        )
    extra = {_name(plugin, place): plugin for place, plugin in enumerate(plugins) if not isinstance(plugin, str)}
    return Registry(block=(*block, *sorted(installed - wanted)), extra=extra, strict=True)


def _name(plugin: object, place: int) -> str:
    return f"{getattr(plugin, '__name__', type(plugin).__name__)}#{place}"
